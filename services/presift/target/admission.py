"""Admission to the engine: a request must fit the model, and the number of waiting requests is limited."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from presift.core.errors import InvalidRequest, Overloaded, PromptTooLong, RouteUnsupported
from presift.core.kv_plan import KvPlan, check_plan
from presift.core.plan import Route
from presift.core.service_time import ServiceTime
from presift.target.answer_checks import check_answer
from presift.target.engine import EngineInfo, GenerateRequest


def check_fits(request: GenerateRequest, info: EngineInfo) -> None:
    """Check a request against the engine's model.

    Raises InvalidRequest for a token id outside the vocabulary, for stop strings without a tokenizer, or for a seed if
    the engine cannot sample by it; PromptTooLong if prompt plus answer exceed the context; RouteUnsupported,
    InvalidRequest or BudgetExceeded for a KV plan that cannot be applied.
    """
    sampling, model = request.sampling, info.model
    _check_ids("token_ids", int(request.token_ids.max()), model.vocabulary_size)
    _check_ids("sampling.stop_token_ids", max(sampling.stop_token_ids, default=0), model.vocabulary_size)
    if sampling.stop and not info.can_stop_at_strings:
        raise InvalidRequest(
            "sampling.stop", f"{len(sampling.stop)} strings", "empty, because the model has no tokenizer"
        )
    if sampling.min_new_tokens and not info.can_stop_at_strings:
        raise InvalidRequest(
            "sampling.min_new_tokens", sampling.min_new_tokens, "0, because the model has no tokenizer"
        )
    if info.unsupported_seeds and sampling.seed is not None and not sampling.is_greedy:
        raise InvalidRequest("sampling.seed", sampling.seed, f"unset unless greedy: {info.unsupported_seeds}")
    _check_ids("sampling.logit_bias", max(sampling.logit_bias, default=0), model.vocabulary_size)
    check_answer(request, info)
    if request.kv_plan is not None:
        _check_kv_plan(request.kv_plan, request.token_ids.size, info)
    prompt_tokens = request.token_ids.size
    total = prompt_tokens + sampling.max_new_tokens
    if total > model.context_tokens:
        sizes = f"{prompt_tokens} prompt tokens and max_new_tokens {sampling.max_new_tokens} are {total} tokens"
        message = f"{sizes}; the context is {model.context_tokens} tokens"
        raise PromptTooLong("token_ids", total, model.context_tokens, message)


def _check_kv_plan(plan: KvPlan, token_count: int, info: EngineInfo) -> None:
    if Route.SPEC_KV not in info.routes:
        reason = info.unsupported.get(Route.SPEC_KV, "this engine does not drop KV")
        raise RouteUnsupported("kv_plan", "set", "unset", f"this target does not serve route spec_kv: {reason}")
    _check_ids("kv_plan.lookahead_token_ids", max(plan.lookahead_token_ids, default=0), info.model.vocabulary_size)
    check_plan(
        plan,
        plan.covered_tokens(token_count),
        layers=info.model.layers,
        kv_heads=info.model.kv_heads,
        page_tokens=info.kv_page_tokens,
    )


def _check_ids(name: str, highest: int, vocabulary_size: int) -> None:
    if highest >= vocabulary_size:
        raise InvalidRequest(name, highest, f"< {vocabulary_size}, the vocabulary size")


class Admission:
    """Limits the requests in flight to `max_running + max_waiting`. `max_running` None: as many as the engine runs."""

    def __init__(self, max_running: int | None, max_waiting: int) -> None:
        # 0 until the engine has started.
        self._max_running = max_running or 0
        self._max_waiting = max_waiting
        self._in_flight = 0
        self._service_time = ServiceTime()

    def use(self, info: EngineInfo) -> None:
        """Take from the engine how many requests run at once, unless it is set. Call it before the first `admit`."""
        self._max_running = self._max_running or info.max_running

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count one request until the block ends. Raises Overloaded with an estimate of when to retry."""
        waiting = self._in_flight - self._max_running
        if waiting >= self._max_waiting:
            retry_after_s = self._service_time.retry_after_s(1, self._max_running)
            raise Overloaded("waiting_requests", waiting + 1, f"<= {self._max_waiting}", retry_after_s)
        self._in_flight += 1
        entered = time.monotonic()
        try:
            yield
        finally:
            self._in_flight -= 1
            self._service_time.observe(time.monotonic() - entered)
