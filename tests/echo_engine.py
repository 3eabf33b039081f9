"""An engine whose output can be computed by hand, for contract tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from presift.core.answer import AnswerDelta, AnswerFormat, Finished, ParsedText, TokenLogprob, ToolCallDelta
from presift.core.errors import TargetUnavailable
from presift.core.generation import EngineLoad, FinishReason, Sampling
from presift.core.kv_plan import KvPlan, check_plan
from presift.core.masks import KvMask
from presift.core.plan import ModelInfo
from presift.core.policies import KV_DROPPING_ROUTES, KV_KEEPING_ROUTES
from presift.target.engine import Engine, EngineInfo, Event, GenerateRequest

ECHO_KV_TOKENS = 65_536
ECHO_MEMORY = 256
ECHO_MODEL = ModelInfo(
    id="echo", revision="1", tokenizer_fingerprint="", context_tokens=4096, layers=1, kv_heads=1, vocabulary_size=512
)


class EchoEngine(Engine):
    """Answers a prompt of n tokens with the prompt itself, over and over: token i of the answer is `prompt[i % n]`.

    - Token `eos_token_id` and every stop token end the answer, are counted, and are not delivered.
    - The text of token t is `text_of(t)`, by default `chr(t)`: a stop string ends the answer after the token that
      completes it.
    - `cached_tokens` is the longest prefix, at most n - 1, shared with an earlier prompt of the same salt. The engine
      remembers the last `remembered` prompts of a salt, and as many plans.
    - With a KV plan that keeps C of n > C tokens, `kv_tokens` is C + 1 and the tokens after those n. The first time, n
      is added to the earlier prompts (unless `keep_full_prefix` is off), `score_ms` is n, `publish_ms` is C,
      `coverage` is C / (n - 1), and kept is what must be, then the first tokens. The same plan, prompt and salt again
      is a `reused_entry` with C `cached_tokens`. With DRAFT_MASK nothing is scored: no `score_ms`, no `coverage`.
    - Routes that drop KV are served unless `no_kv_dropping` gives a reason why not.
    - With `has_parsers` it has parsers and grammars. The text of an answer with a `format` is read by `new_parser`, by
      default an EchoParser: the line `CALL name {arguments}` is a call and the line `THINK text` is reasoning. A forced
      call must be in the prompt; the engine makes none.
    - Each token is certain (log probability 0); the others of `top_logprobs` are the next ids, each 1 less likely.
    - A grammar is accepted and has no effect, and so do the other values of sampling.
    - Each token takes `token_delay_s` seconds. At most `max_running` answers run at once; others wait.
    - `aborted` counts requests that were closed early; `fail` makes the engine fail as if it had crashed.
    """

    def __init__(
        self,
        *,
        token_delay_s: float = 0.0,
        max_running: int = 1024,
        eos_token_id: int = 0,
        model: ModelInfo = ECHO_MODEL,
        can_stop_at_strings: bool = True,
        no_kv_dropping: str | None = None,
        kv_page_tokens: int = 1,
        remembered: int = ECHO_MEMORY,
        has_parsers: bool = False,
        new_parser: Callable[[AnswerFormat], Parser] | None = None,
        text_of: Callable[[int], str] = chr,
    ) -> None:
        self.token_delay_s = token_delay_s
        self.aborted = 0
        routes = (*KV_KEEPING_ROUTES, *(KV_DROPPING_ROUTES if no_kv_dropping is None else ()))
        unsupported = {} if no_kv_dropping is None else dict.fromkeys(KV_DROPPING_ROUTES, no_kv_dropping)
        self._info = EngineInfo("echo 1", model, routes, can_stop_at_strings, unsupported, kv_page_tokens)
        if has_parsers:
            self._info = replace(self._info, tool_call_parser="echo", reasoning_parser="echo", grammars=True)
        self._new_parser, self._text_of = new_parser or EchoParser, text_of
        self._eos_token_id = eos_token_id
        self._slots = asyncio.Semaphore(max_running)
        self._running = self._waiting = self._held_tokens = 0
        self._remembered = remembered
        # Dicts keep the order, so that the oldest is dropped first.
        self._seen: dict[str, dict[tuple[int, ...], None]] = {}
        self._entries: dict[tuple[Any, ...], None] = {}
        self._death: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def running_requests(self) -> int:
        return self._running

    def load(self) -> EngineLoad:
        """A running request holds one of ECHO_KV_TOKENS slots per prompt token."""
        held = self._held_tokens
        return EngineLoad(self._running - self._waiting, self._waiting, max(0, ECHO_KV_TOKENS - held), held)

    async def start(self) -> None:
        """Nothing to load."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self._running += 1
        finished = False
        try:
            async with self._slot(int(request.token_ids.size)):
                async for event in self._answer(request):
                    finished = isinstance(event, Finished)
                    yield event
        finally:
            self._running -= 1
            self.aborted += not finished

    async def died(self) -> str:
        return await asyncio.shield(self._death)

    async def stop(self) -> None:
        self.fail("stopped")

    def fail(self, reason: str) -> None:
        """Fail running and later requests."""
        if not self._death.done():
            self._death.set_result(reason)

    @asynccontextmanager
    async def _slot(self, tokens: int) -> AsyncGenerator[None, None]:
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._held_tokens += tokens
        try:
            yield
        finally:
            self._held_tokens -= tokens
            self._slots.release()

    async def _answer(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        prompt = request.token_ids.tolist()
        read = self._read(request, prompt)
        answer: list[int] = []
        parser = None if request.format is None else self._new_parser(request.format)
        reason = None
        while reason is None:
            await self._wait()
            answer.append(prompt[len(answer) % len(prompt)])
            reason = self._reason(answer, request.sampling)
            if not self._is_stop_token(answer[-1], request.sampling):
                parsed = None if parser is None else parser.push(self._text_of(answer[-1]))
                yield AnswerDelta((answer[-1],), _logprobs(answer[-1:], request.sampling), parsed)
        if parser is not None:
            yield AnswerDelta((), (), parser.finish())
            if parser.has_calls and reason is FinishReason.STOP:
                reason = FinishReason.TOOL_CALLS
        of_prompt = _logprobs(prompt, request.sampling) if request.sampling.prompt_logprobs else ()
        yield Finished(
            len(prompt), completion_tokens=len(answer), finish_reason=reason, prompt_logprobs=of_prompt, **read
        )

    def _read(self, request: GenerateRequest, prompt: list[int]) -> dict[str, Any]:
        """The fields of Finished that describe reading `prompt`."""
        plan, salt = request.kv_plan, request.cache_salt
        covered = len(prompt) if plan is None else plan.covered_tokens(len(prompt))
        if plan is None or covered <= plan.capacity_for(self._info.kv_page_tokens):
            return {"cached_tokens": self._cached_tokens(prompt, salt), "kv_tokens": len(prompt)}
        model, page_tokens = self._info.model, self._info.kv_page_tokens
        kept = check_plan(plan, covered, layers=model.layers, kv_heads=model.kv_heads, page_tokens=page_tokens)
        coverage = kept / (covered - 1) if plan.kv_mask is None else None
        held = {"kv_tokens": kept + 1 + len(prompt) - covered, "coverage": coverage}
        named = replace(plan, keep_full_prefix=True, prompt_tokens=0, report_kept=False)
        entry = (salt, tuple(prompt[:covered]), named)
        if entry in self._entries:
            return held | {"cached_tokens": kept, "reused_entry": True}
        _remember(self._entries, entry, self._remembered)
        cached = self._cached_tokens(prompt[:covered], salt, remember=plan.keep_full_prefix)
        mask = _kept(plan, covered, kept) if plan.report_kept else None
        times = {"score_ms": float(covered) if plan.kv_mask is None else 0.0, "publish_ms": float(kept)}
        return held | times | {"cached_tokens": cached, "kv_mask": mask}

    async def _wait(self) -> None:
        await asyncio.sleep(self.token_delay_s)
        if self._death.done():
            raise TargetUnavailable(f"the engine has failed: {self._death.result()}")

    def _reason(self, answer: Sequence[int], sampling: Sampling) -> FinishReason | None:
        text = "".join(map(self._text_of, answer))
        if self._is_stop_token(answer[-1], sampling) or any(stop in text for stop in sampling.stop):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(answer) == sampling.max_new_tokens else None

    def _is_stop_token(self, token_id: int, sampling: Sampling) -> bool:
        is_eos = token_id == self._eos_token_id and not sampling.ignore_eos
        return is_eos or token_id in sampling.stop_token_ids

    def _cached_tokens(self, prompt: list[int], salt: str, *, remember: bool = True) -> int:
        earlier = self._seen.setdefault(salt, {})
        longest = max((_shared(prompt, other) for other in earlier), default=0)
        if remember:
            _remember(earlier, tuple(prompt), self._remembered)
        return min(longest, len(prompt) - 1)


class Parser(Protocol):
    """Separates the text of one answer, as `presift.target.sglang.answer_parser.AnswerParser` does."""

    @property
    def has_calls(self) -> bool: ...

    def push(self, text: str) -> ParsedText: ...

    def finish(self) -> ParsedText: ...


class EchoParser:
    """Reads an answer line by line: `CALL name {arguments}` is a call, `THINK text` is reasoning; others: content."""

    def __init__(self, wanted: AnswerFormat) -> None:
        self._wanted, self._line, self._calls = wanted, "", 0

    @property
    def has_calls(self) -> bool:
        return self._calls > 0

    def push(self, text: str) -> ParsedText:
        self._line += text
        if "\n" not in text and _may_be_special(self._line):
            return ParsedText()
        return self.finish()

    def finish(self) -> ParsedText:
        line, self._line = self._line, ""
        kind, _, rest = line.rstrip("\n").partition(" ")
        if kind == "THINK" and self._wanted.separate_reasoning:
            return ParsedText(reasoning=rest)
        if kind == "CALL" and self._wanted.tools_json:
            name, _, arguments = rest.partition(" ")
            half = len(arguments) // 2
            first = ToolCallDelta(self._calls, f"call_{self._calls}", name, arguments[:half])
            self._calls += 1
            return ParsedText(tool_calls=(first, ToolCallDelta(first.index, arguments=arguments[half:])))
        return ParsedText(line)


def _may_be_special(line: str) -> bool:
    return any(line.startswith(word) or word.startswith(line) for word in ("CALL ", "THINK "))


def _logprobs(token_ids: Sequence[int], sampling: Sampling) -> tuple[TokenLogprob, ...]:
    if sampling.top_logprobs is None:
        return ()
    size = ECHO_MODEL.vocabulary_size
    tops = (tuple(((token + n) % size, float(-n)) for n in range(sampling.top_logprobs)) for token in token_ids)
    return tuple(TokenLogprob(token, 0.0, top) for token, top in zip(token_ids, tops, strict=True))


def _remember(known: dict[tuple[Any, ...], None], new: tuple[Any, ...], limit: int) -> None:
    known.pop(new, None)
    known[new] = None
    while len(known) > limit:
        del known[next(iter(known))]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    limit = min(len(one), len(other))
    return next((i for i in range(limit) if one[i] != other[i]), limit)


def _kept(plan: KvPlan, prompt_tokens: int, kept: int) -> KvMask:
    if plan.kv_mask is not None:
        return plan.kv_mask
    flags = np.append(plan.must_keep(prompt_tokens), True)
    others = np.flatnonzero(~flags)
    flags[others[: kept + 1 - np.count_nonzero(flags)]] = True
    return KvMask(flags[None, None])
