"""An engine whose every output can be worked out by hand: for contract tests, and for the orchestrator's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from presift.core.errors import TargetUnavailable
from presift.core.plan import ModelInfo, Route
from presift.target.engine import Engine, EngineInfo, Event, Finished, FinishReason, GenerateRequest, Sampling, Tokens

ECHO_MODEL = ModelInfo(
    id="echo", revision="1", tokenizer_fingerprint="", context_tokens=4096, layers=1, kv_heads=1, vocabulary_size=512
)


class EchoEngine(Engine):
    """Answers a prompt of n tokens with the prompt itself, over and over: token i of the answer is `prompt[i % n]`.

    - Token `eos_token_id` and every stop token end the answer, are counted, and are not delivered.
    - The text of token t is `chr(t)`: a stop string ends the answer after the token that completes it.
    - `cached_tokens` is the longest prefix, at most n - 1, that any earlier prompt of the same salt shares.
    - Each token takes `token_delay_s` seconds. At most `max_running` answers run at once; the others wait.
    - `aborted` counts requests that were closed early; `fail` makes the engine die as a crashed one does.
    """

    def __init__(
        self,
        *,
        token_delay_s: float = 0.0,
        max_running: int = 1024,
        eos_token_id: int = 0,
        model: ModelInfo = ECHO_MODEL,
        can_stop_at_strings: bool = True,
    ) -> None:
        self.token_delay_s = token_delay_s
        self.aborted = 0
        self._info = EngineInfo("echo 1", model, (Route.FULL, Route.SPEC_PC), can_stop_at_strings)
        self._eos_token_id = eos_token_id
        self._slots = asyncio.Semaphore(max_running)
        self._running = 0
        self._seen: dict[str, list[list[int]]] = {}
        self._death: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def running_requests(self) -> int:
        return self._running

    async def start(self) -> None:
        """Nothing to load."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self._running += 1
        finished = False
        try:
            async with self._slots:
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
        """From now on every request fails, running ones too."""
        if not self._death.done():
            self._death.set_result(reason)

    async def _answer(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        prompt = request.token_ids.tolist()
        cached = self._cached_tokens(prompt, request.cache_salt)
        answer: list[int] = []
        reason = None
        while reason is None:
            await self._wait()
            answer.append(prompt[len(answer) % len(prompt)])
            reason = self._reason(answer, request.sampling)
            if not self._is_stop_token(answer[-1], request.sampling):
                yield Tokens((answer[-1],))
        yield Finished(len(prompt), cached, len(answer), reason, kv_tokens=len(prompt))

    async def _wait(self) -> None:
        await asyncio.sleep(self.token_delay_s)
        if self._death.done():
            raise TargetUnavailable(f"the engine is gone: {self._death.result()}")

    def _reason(self, answer: Sequence[int], sampling: Sampling) -> FinishReason | None:
        text = "".join(map(chr, answer))
        if self._is_stop_token(answer[-1], sampling) or any(stop in text for stop in sampling.stop):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(answer) == sampling.max_new_tokens else None

    def _is_stop_token(self, token_id: int, sampling: Sampling) -> bool:
        is_eos = token_id == self._eos_token_id and not sampling.ignore_eos
        return is_eos or token_id in sampling.stop_token_ids

    def _cached_tokens(self, prompt: list[int], salt: str) -> int:
        earlier = self._seen.setdefault(salt, [])
        longest = max((_shared(prompt, other) for other in earlier), default=0)
        earlier.append(prompt)
        return min(longest, len(prompt) - 1)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    limit = min(len(one), len(other))
    return next((i for i in range(limit) if one[i] != other[i]), limit)
