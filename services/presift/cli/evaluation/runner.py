"""Asks an orchestrator for every answer that is missing."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from presift.cli.evaluation.arms import AUTO, BASELINE, Arm, readers_of
from presift.cli.evaluation.dataset import Example
from presift.cli.evaluation.results import Answer, Failure, Key, Result, ResultFile, answer_of
from presift_client import (
    AsyncClient,
    BudgetExceeded,
    DeadlineExceeded,
    Explanation,
    Info,
    InternalError,
    InvalidRequest,
    Overloaded,
    RouteUnsupported,
    Unavailable,
)

# Errors of the request itself: another run would get them again.
_PERMANENT = (InvalidRequest, BudgetExceeded, RouteUnsupported)
# Errors of one call: another run may succeed. All other errors would affect every call and end the run.
_OF_ONE_CALL = (DeadlineExceeded, InternalError)
_ATTEMPTS = 5
_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How answers are generated. Routes with a budget compress prompts above `compress_above` tokens; `max_new_tokens`
    None is the orchestrator's default. `seed` applies if `temperature` is above 0. `deadline_s` changes no answer."""

    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    compress_above: int = 0
    deadline_s: float = 600.0

    def of(self, example: Example) -> AnswerSettings:
        """These settings with the example's own limit of its answer."""
        return self if example.max_new_tokens is None else replace(self, max_new_tokens=example.max_new_tokens)

    @property
    def options(self) -> dict[str, Any]:
        """As options of the client."""
        options: dict[str, Any] = {"temperature": self.temperature, "deadline_s": self.deadline_s}
        if self.max_new_tokens is not None:
            options["max_new_tokens"] = self.max_new_tokens
        if self.temperature > 0:
            options["seed"] = self.seed
        return options

    def digest(self, info: Info, tenant: str | None) -> str:
        """Of all that answers depend on besides prompt and arm, models and policy file included: 16 hex digits."""
        values = {
            "options": {name: value for name, value in self.options.items() if name != "deadline_s"},
            "compress_above": self.compress_above,
            "models": [None if model is None else asdict(model) for model in (info.target, info.draft)],
            "policy_file": None if info.policy_file is None else info.policy_file.digest,
            "tenant": tenant,
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class Runner:
    """Asks for answers and writes them to `results`. `failures` are the calls that failed and may be asked again."""

    def __init__(self, client: AsyncClient, arms: Sequence[Arm], settings: AnswerSettings, results: ResultFile) -> None:
        self._client = client
        self._arms = arms
        self._settings = settings
        self._results = results
        self.failures: dict[Key, Failure] = {}

    def missing(self, examples: Sequence[Example]) -> int:
        """How many answers the results lack."""
        keys = {Key(example.digest, arm.name) for example in examples for arm in self._arms}
        return len(keys - self._results.results.keys())

    async def run(self, examples: Sequence[Example], concurrency: int, on_result: Callable[[], None]) -> None:
        """Ask for all missing answers, for up to `concurrency` prompts at a time; `on_result` is called after each.

        The arms of a prompt are asked one after the other, so that all see the same load. Failures of single calls
        are kept in `failures`, and another run repeats them. Raises PresiftError for errors that all calls would get.
        """
        prompts = enumerate(examples)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(self._work(prompts, on_result))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def explain(self, example: Example, arm: Arm) -> Explanation:
        """What the arm keeps of a prompt. Raises PresiftError."""
        options = await self._request(example, arm) | {"span_per_token": True}
        if (limit := self._settings.of(example).max_new_tokens) is not None:
            options["max_new_tokens"] = limit
        return await self._client.explain(**options, include_kv_mask=True, deadline_s=self._settings.deadline_s)

    async def _work(self, prompts: Iterator[tuple[int, Example]], on_result: Callable[[], None]) -> None:
        for number, example in prompts:
            for arm in order(self._arms, number):
                key = Key(example.digest, arm.name)
                if key in self._results.results:
                    continue
                result = await self._ask(example, arm)
                if isinstance(result, Failure) and result.again:
                    self.failures[key] = result
                else:
                    self._results.add(key, example.id, result)
                on_result()

    def _read_by(self, example: Example) -> frozenset[str]:
        """Which of "draft" and "target" have read the whole prompt, or may have before a call failed."""
        found = frozenset[str]()
        for arm in self._arms:
            key = Key(example.digest, arm.name)
            result = self._results.results.get(key)
            if isinstance(result, Answer):
                found |= readers_of(result.route)
            elif key in self.failures:
                found |= readers_of(arm.route)
        return found

    async def _ask(self, example: Example, arm: Arm) -> Result:
        read_by = self._read_by(example)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                options = await self._request(example, arm) | self._settings.of(example).options
                generation = await self._client.generate(**options)
                return answer_of(generation, first_reading=not read_by & readers_of(generation.decision.route))
            except _PERMANENT as error:
                return Failure(type(error).__name__, str(error))
            except _OF_ONE_CALL as error:
                return Failure(type(error).__name__, str(error), again=True)
            except (Overloaded, Unavailable) as error:
                if attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(error.retry_after_s or _PAUSE_S * attempt)
        raise AssertionError("unreachable")

    async def _request(self, example: Example, arm: Arm) -> dict[str, Any]:
        """The options that say what the target reads and holds."""
        tokens = await self._prompt_tokens(example) if arm.is_relative else None
        above = {} if arm.budget is None else {"compress_above_tokens": self._settings.compress_above}
        return {**example.prompt, **arm.options(tokens), **above}

    async def _prompt_tokens(self, example: Example) -> int:
        known = self._results.prompt_tokens.get(example.digest)
        if known is not None:
            return known
        explanation = await self._client.explain(
            **example.prompt, route=str(BASELINE.route), deadline_s=self._settings.deadline_s
        )
        self._results.prompt_tokens[example.digest] = explanation.decision.prompt_tokens
        return explanation.decision.prompt_tokens


def order(arms: Sequence[Arm], number: int) -> tuple[Arm, ...]:
    """The order of the arms for prompt `number`: each begins with another arm, in turns forwards and backwards, so that
    every arm is asked about some prompts before others have had them read."""
    start = number % len(arms)
    first, *rest = (*arms[start:], *arms[:start])
    return (first, *(rest[::-1] if number // len(arms) % 2 else rest))


def check_served(arms: Sequence[Arm], info: Info) -> None:
    """Raise ValueError for a route that the orchestrator does not serve."""
    for arm in arms:
        if arm.route not in (AUTO, *info.supported_routes):
            served = ", ".join(info.supported_routes)
            raise ValueError(f"routes has '{arm.route}', which is not served here; served: {served}")
