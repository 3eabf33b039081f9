"""Requests and answers, between presift's words and SGLang's."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from presift.core.errors import InternalError, TargetUnavailable
from presift.target.engine import Event, Finished, FinishReason, GenerateRequest, Tokens


def to_sglang(request: GenerateRequest) -> Any:
    """The request as SGLang's tokenizer manager takes it, under an id of its own."""
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
    sampling = request.sampling
    return {
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": -1 if sampling.top_k is None else sampling.top_k,
        # SGLang's seeds are signed.
        "sampling_seed": None if sampling.seed is None else sampling.seed - (sampling.seed >> 63 << 64),
        "stop": list(sampling.stop),
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": sampling.ignore_eos,
    }


def events_of(answer: dict[str, Any]) -> Iterator[Event]:
    """What one message of SGLang's stream says. Raises TargetUnavailable if it says that the request was aborted."""
    meta, token_ids = answer["meta_info"], answer["output_ids"]
    reason = meta["finish_reason"]
    if reason and reason["type"] == "abort":
        raise _aborted(reason)
    if reason and token_ids and token_ids[-1] == reason.get("matched"):
        token_ids = token_ids[:-1]
    if token_ids:
        yield Tokens(tuple(token_ids))
    if reason:
        end = FinishReason(reason["type"])
        yield Finished(meta["prompt_tokens"], meta["cached_tokens"], meta["completion_tokens"], end)


def _aborted(reason: dict[str, Any]) -> TargetUnavailable | InternalError:
    if reason.get("status_code") == 400:
        return InternalError("SGLang refused a request that presift had found valid")
    return TargetUnavailable(str(reason.get("message") or "the request was aborted inside the engine"))
