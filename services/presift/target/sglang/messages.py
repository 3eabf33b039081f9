"""Translates requests and answers between presift and SGLang."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

from presift.core.answer import AnswerDelta
from presift.core.errors import (
    BudgetExceeded,
    InternalError,
    InvalidRequest,
    PresiftError,
    PromptTooLong,
    RouteUnsupported,
    TargetUnavailable,
)
from presift.core.generation import FinishReason
from presift.target.engine import Event, Finished, GenerateRequest
from presift.target.sglang_plugin import custom_params

# SGLang's value for the whole vocabulary. A larger one overflows int32 and would end the scheduler.
_TOP_K_ALL = 1 << 30


def to_sglang(request: GenerateRequest) -> Any:
    """The request for SGLang's tokenizer manager, with a new request id."""
    from sglang.srt.managers.io_struct import GenerateReqInput  # noqa: PLC0415 - loaded by now

    return GenerateReqInput(
        input_ids=request.token_ids.tolist(),
        sampling_params=sampling_arguments(request),
        cache_salt=request.cache_salt or None,
        rid=uuid.uuid4().hex,
        stream=True,
    )


def sampling_arguments(request: GenerateRequest) -> dict[str, Any]:
    """SGLang's `sampling_params` of a request."""
    sampling, plan = request.sampling, request.kv_plan
    return {
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature or 0.0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "top_k": -1 if sampling.top_k is None else min(sampling.top_k, _TOP_K_ALL),
        # SGLang's seeds are signed.
        "sampling_seed": None if sampling.seed is None else sampling.seed - (sampling.seed >> 63 << 64),
        "stop": list(sampling.stop),
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": sampling.ignore_eos,
        "custom_params": None if plan is None else {custom_params.KEY: custom_params.to_text(plan)},
    }


class AnswerReader:
    """Reads the messages of one answer, in order. The plugin's report comes only with the first token."""

    def __init__(self) -> None:
        self._report: dict[str, Any] | None = None

    def events(self, answer: dict[str, Any]) -> Iterator[Event]:
        """The events of one message. Raises TargetUnavailable if SGLang aborted the request, and the plugin's error
        (RouteUnsupported, InvalidRequest, ...) if the plugin refused it.
        """
        meta, token_ids = answer["meta_info"], answer["output_ids"]
        # Requests without a report have None if another request of the batch has one.
        self._report = next(filter(None, meta.get(custom_params.KEY) or ()), self._report)
        reason = meta["finish_reason"]
        if reason and reason["type"] == "abort":
            raise _aborted(reason)
        if reason and token_ids and token_ids[-1] == reason.get("matched"):
            token_ids = token_ids[:-1]
        if token_ids:
            yield AnswerDelta(tuple(token_ids))
        if reason:
            yield self._finished(meta, FinishReason(reason["type"]))

    def _finished(self, meta: dict[str, Any], end: FinishReason) -> Finished:
        if self._report is not None:
            # SGLang's own counts refer to the entry, not to the prompt.
            kept = self._report["kv_mask"]
            report = self._report | {"kv_mask": custom_params.mask_from_values(kept) if kept else None}
            return Finished(completion_tokens=meta["completion_tokens"], reason=end, **report)
        prompt_tokens = meta["prompt_tokens"]
        return Finished(prompt_tokens, meta["cached_tokens"], meta["completion_tokens"], end, kv_tokens=prompt_tokens)


# The plugin's refusals by the name of their class.
_REFUSALS: dict[str, Callable[[str], PresiftError]] = {
    "RouteUnsupported": lambda message: RouteUnsupported("kv_plan", "set", "unset", message),
    "InvalidRequest": lambda message: InvalidRequest("kv_plan", "refused", "a plan that can be applied", message),
    "PromptTooLong": lambda message: PromptTooLong("token_ids", "refused", "fewer", message),
    "BudgetExceeded": lambda message: BudgetExceeded("kv_plan", "refused", "a larger capacity", message),
    "InternalError": InternalError,
}


def _aborted(reason: dict[str, Any]) -> PresiftError:
    message = str(reason.get("message") or "the engine aborted the request")
    owner, _, kind = str(reason.get("err_type") or "").partition(".")
    if owner == custom_params.KEY and kind in _REFUSALS:
        return _REFUSALS[kind](message)
    if reason.get("status_code") == 400:
        return InternalError("SGLang refused a request that presift had accepted")
    return TargetUnavailable(message)
