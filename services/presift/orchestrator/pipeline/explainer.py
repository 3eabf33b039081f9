"""Explains requests: plans them as the pipeline does, and shows what becomes of the prompt instead of answering."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TypeVar

from presift.core.errors import DeadlineExceeded, InvalidRequest, PermissionDenied
from presift.orchestrator.admission.quotas import Quota
from presift.orchestrator.admission.request_cost import request_cost
from presift.orchestrator.domain.request import Request, TokenIds
from presift.orchestrator.pipeline.parts import Parts
from presift.orchestrator.planning.capabilities import narrowed_to_target
from presift.orchestrator.planning.explain import Detail, Explanation, explain
from presift.orchestrator.planning.kept_kv import KeptKv, KeptKvReader
from presift.orchestrator.routing.decision import Plan
from presift.rpc.deadline import NO_DEADLINE, Deadline
from presift.rpc.large_input import in_thread

T = TypeVar("T")


def check_explains(explains: bool) -> None:
    """Raise PermissionDenied unless this server explains requests."""
    if not explains:
        raise PermissionDenied("Explain is disabled on this server (--no-explain)")


class Explainer:
    """Explains requests. One ends after `max_request_s`, whatever its deadline; None: only by its deadline."""

    def __init__(self, parts: Parts, max_request_s: float | None) -> None:
        self._parts = parts
        self._max_request_s = max_request_s
        self._kept_kv = KeptKvReader(parts.target)

    async def explain(
        self, request: Request, detail: Detail, render: Callable[[Explanation], T], deadline: Deadline = NO_DEADLINE
    ) -> T:
        """The decision and the fate of every prompt token, without an answer. Returns what `render` makes of it, in a
        thread. Raises the draft's errors instead of falling back to the full prompt, and InvalidRequest for a KV mask
        of a selection that changes."""
        parts, arrived, deadline = self._parts, time.perf_counter(), deadline.at_most(self._max_request_s)
        parts.calibration.stop()
        if detail.kv_mask and request.kv.asks_renewal:
            limit = "unset if kv asks to select KV while the answer is generated"
            raise InvalidRequest("include_kv_mask", "true", limit)
        request = narrowed_to_target(request, parts.models.known_target())
        tenant, cost = request.tenant or "", request_cost(request)
        try:
            async with deadline.timeout(), AsyncExitStack() as entered:
                quota = await entered.enter_async_context(parts.quotas.held(request.tenant, request.limits))
                # Before it waits: a tenant over its quota is refused at once.
                await quota.reserve_estimate(cost.prompt_tokens, max_new_tokens=0, is_exact=cost.is_exact)
                if detail.kv_mask:
                    await entered.enter_async_context(parts.reading_masks.slot(tenant, cost, NO_DEADLINE))
                slot = await entered.enter_async_context(parts.admission.slot(tenant, cost, deadline))
                with parts.guard.idle_gate.busy():
                    plan = await self._plan(request, quota, arrived)
                    kept_kv = await self._kept_kv.read(plan, deadline) if detail.kv_mask else None
                slot.close()
                cost = replace(cost, tokens=max(1, int(plan.tokens.ids.size)))
                await entered.enter_async_context(parts.explaining.slot(tenant, cost, NO_DEADLINE))
                return await self._explained(request, plan, detail, kept_kv, render)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed") from None

    async def _plan(self, request: Request, quota: Quota, arrived: float) -> Plan:
        reader = self._parts.reader
        tokens, tokenize_ms = await reader.read(request)
        await quota.reserve(tokens.ids.size, max_new_tokens=0)
        with reader.context(request, tokens, tokenize_ms, arrived, explains=True) as (context, _):
            return await self._parts.planner.plan(context, explains=True)

    async def _explained(
        self, request: Request, plan: Plan, detail: Detail, kept_kv: KeptKv | None, render: Callable[[Explanation], T]
    ) -> T:
        text, offsets = "", None
        if not isinstance(request.prompt, TokenIds):
            text, offsets = await self._parts.tokenizer.render_with_offsets(request.prompt)

        def explained() -> T:
            spans = explain(plan, offsets, kept_kv, span_per_token=detail.span_per_token)
            return render(Explanation(plan.decision, spans, text, kept_kv, plan.routes))

        return await in_thread(explained)
