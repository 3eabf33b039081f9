"""An orchestrator's client whose answers are those of a peer, so that `presift eval` asks peers as it asks routes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from peers.answering import AnsweringPeer
from peers.passages import Peer, shorten

from presift.cli.evaluation.suites.token_counter import TokenCounter
from presift_client import AsyncClient, Decision, Generation, Model, Usage


class ShorteningClient:
    """The prompt is shortened to `max_prompt_tokens` first.

    The answer's decision has the tokens of the whole prompt, and its times include the peer's.
    """

    def __init__(self, client: AsyncClient, counter: TokenCounter, peer: Peer) -> None:
        self._client = client
        self._counter = counter
        self._peer = peer

    async def generate(self, *, messages: list[dict[str, Any]], max_prompt_tokens: int, **options: Any) -> Generation:
        prompt = {"messages": messages}
        whole = await self._count(prompt)
        shortened, took_ms = await shorten(prompt, self._peer, max_prompt_tokens, self._count)
        found = await self._client.generate(**options, **shortened)
        usage = replace(found.usage, ttft_ms=found.usage.ttft_ms + took_ms, total_ms=found.usage.total_ms + took_ms)
        return replace(found, usage=usage, decision=replace(found.decision, prompt_tokens=whole))

    async def explain(self, **options: Any) -> Any:
        return await self._client.explain(**options)

    async def _count(self, prompt: dict[str, Any]) -> int:
        return await self._counter.chat(prompt["messages"])


class AnsweringClient:
    """The peer answers. The orchestrator only counts the prompt's tokens."""

    def __init__(self, client: AsyncClient, counter: TokenCounter, peer: AnsweringPeer, target: Model) -> None:
        self._client = client
        self._counter = counter
        self._peer = peer
        self._target = target

    async def generate(
        self,
        *,
        messages: list[dict[str, Any]],
        route: str,
        max_new_tokens: int,
        max_kv_tokens: int | None = None,
        **_: Any,
    ) -> Generation:
        whole = await self._counter.chat(messages)
        found = await self._peer.answer(messages, max_kv_tokens, max_new_tokens)
        decision = Decision(
            route=route, reason="", detail="", prompt_tokens=whole, kept_tokens=found.prompt_tokens,
            kv_tokens=found.kv_tokens, protected_tokens=0, coverage=None, cache="", draft=None, target=self._target,
            tokenize_ms=0.0, cache_ms=0.0, draft_ms=0.0,
        )  # fmt: skip
        usage = Usage(
            prompt_tokens=whole, kept_tokens=found.prompt_tokens, kv_tokens=found.kv_tokens, cached_tokens=0,
            completion_tokens=found.completion_tokens, finish_reason=found.finish_reason, target_ttft_ms=found.ttft_ms,
            ttft_ms=found.ttft_ms, total_ms=found.total_ms,
        )  # fmt: skip
        return Generation(found.text, found.token_ids, decision, usage)

    async def explain(self, **options: Any) -> Any:
        return await self._client.explain(**options)
