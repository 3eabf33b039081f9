"""Checks a request that carries a KV plan, and rewrites it to decode on a compressed entry."""

from __future__ import annotations

import logging
from array import array
from functools import cache
from importlib.metadata import version
from typing import Any

from presift.core.errors import InternalError, InvalidRequest, PresiftError, PromptTooLong, RouteUnsupported
from presift.core.kv_plan import KvPlan, check_plan, scoring_slots
from presift.target.sglang_plugin.custom_params import KEY, from_text
from presift.target.sglang_plugin.states import DecodeState, PassthroughState, Report, entry_name

log = logging.getLogger(__name__)


def rewrite_request(scheduler: Any, received: Any, unsupported: str | None) -> None:
    """Rewrite `received` (a TokenizedGenerateReqInput) in place. Raises PresiftError and leaves it unchanged then."""
    if unsupported is not None:
        raise RouteUnsupported("route", "spec_kv", "another", f"this engine does not support spec_kv: {unsupported}")
    _check_features(received)
    plan = from_text(received.sampling_params.custom_params[KEY])
    tokens = array("q", received.input_ids)
    prompt_tokens = plan.covered_tokens(len(tokens))
    sampling = received.sampling_params
    if sampling.max_new_tokens is None:
        # As many as the context holds: SGLang would count from the entry's length.
        sampling.max_new_tokens = max(1, scheduler.model_config.context_len - len(tokens))
    kept = _check_plan(scheduler, plan, len(tokens), prompt_tokens, sampling.max_new_tokens)
    sampling.custom_params = dict(sampling.custom_params)
    if prompt_tokens <= plan.capacity_for(scheduler.page_size):
        sampling.custom_params[KEY] = PassthroughState(Report(len(tokens), len(tokens), 0))
        return
    _check_pool(scheduler, plan, prompt_tokens, kept)
    prompt, suffix = tokens[:prompt_tokens], tokens[prompt_tokens:]
    entry = entry_name(plan, prompt, kept, (received.extra_key, received.cache_salt), engine_identity(scheduler))
    state = DecodeState(plan, prompt, kept, entry, received.extra_key, len(suffix))
    sampling.custom_params[KEY] = state
    state.next_renewal = plan.policy.renew_every or None
    if plan.policy.first_full_tokens and len(tokens) + sampling.max_new_tokens < scheduler.max_req_len:
        state.is_full, state.next_renewal = True, plan.policy.first_full_tokens
        return
    received.input_ids = state.pseudo_key + prompt[-1:] + suffix
    received.extra_key = entry


def engine_identity(scheduler: Any) -> tuple[str | None, ...]:
    """The model, its revision, the version of its weights, and those of SGLang and presift."""
    from sglang.srt.runtime_context import get_serving  # noqa: PLC0415 - in the scheduler alone

    arguments = scheduler.server_args
    # SGLang changes the version of the weights when it loads others.
    return (arguments.model_path, arguments.revision, get_serving().weight_version, *_versions())


@cache
def _versions() -> tuple[str, str]:
    return version("sglang"), version("presift")


def send_refusal(scheduler: Any, received: Any, error: PresiftError) -> None:
    """Answer `received` with an abort that carries the error."""
    from sglang.srt.managers.io_struct import AbortReq  # noqa: PLC0415 - in the scheduler alone

    # The target reads the error's class from `err_type`.
    kind = type(error).__name__
    status = 500 if isinstance(error, InternalError) else 400
    reason = {"type": "abort", "status_code": status, "message": error.message, "err_type": f"{KEY}.{kind}"}
    answer = AbortReq(rid=received.rid, finished_reason=reason)
    scheduler.ipc_channels.send_to_tokenizer.send_output(answer, received)


def _check_features(received: Any) -> None:
    """Refuse features that would read the entry's name instead of the prompt, or that are untested with it."""
    sampling = received.sampling_params
    unsupported = {
        "n": sampling.n != 1,
        "beam_width": (getattr(sampling, "beam_width", None) or 1) > 1,
        # SGLang has it from 0.5.22 on. It changes the most likely tokens, and reads tokens before them.
        "watermark": getattr(sampling, "watermark", None) is not None,
        "logprob_start_len": received.return_logprob and received.logprob_start_len != -1,
        "lora_id": received.lora_id is not None,
        "session": received.session_params is not None or received.session_id is not None,
        "input_embeds": received.input_embeds is not None or received.mm_inputs is not None,
        "return_hidden_states": bool(received.return_hidden_states),
        "positional_embed_overrides": received.positional_embed_overrides is not None,
        "token_type_ids": received.token_type_ids is not None,
        "token_indices_to_pool": received.token_indices_to_pool is not None,
        "multi_item_delimiter_indices": received.multi_item_delimiter_indices is not None,
        "custom_logit_processor": received.custom_logit_processor is not None,
    }
    for name, applies in unsupported.items():
        if applies:
            raise InvalidRequest(name, "set", "unset in a request that drops KV")


def _check_plan(scheduler: Any, plan: KvPlan, tokens: int, prompt_tokens: int, max_new_tokens: int) -> int:
    """How many KV pairs per layer and head the plan keeps. SGLang's own checks see the entry, not the prompt."""
    kept = check_plan(
        plan,
        prompt_tokens,
        layers=scheduler.model_config.num_hidden_layers,
        # Those of the model: a rank of tensor parallelism holds some of them.
        kv_heads=scheduler.model_config.get_total_num_kv_heads(),
        page_tokens=scheduler.page_size,
    )
    vocabulary_size, context = scheduler.model_config.vocab_size, scheduler.model_config.context_len
    if max(plan.lookahead_token_ids, default=0) >= vocabulary_size:
        # SGLang checks the prompt's ids alone. An id outside the embedding would end the scheduler.
        raise InvalidRequest(f"{KEY}.lookahead", max(plan.lookahead_token_ids), f"< {vocabulary_size}")
    if tokens + max_new_tokens > context:
        sizes = f"{tokens} prompt tokens and {max_new_tokens} new tokens exceed the context of {context} tokens"
        raise PromptTooLong("input_ids", tokens, f"<= {context - max_new_tokens}", sizes)
    return kept


def _check_pool(scheduler: Any, plan: KvPlan, prompt_tokens: int, kept: int) -> None:
    """Refuse a prompt that SGLang could never admit: it would block the head of the queue for ever."""
    read = prompt_tokens + len(plan.lookahead_token_ids)
    if read >= scheduler.max_req_len:
        raise PromptTooLong("input_ids", f"{read} tokens with the lookahead", f"< {scheduler.max_req_len}")
    # During KV selection a request holds the KV of the prompt, of the lookahead and of the entry.
    needed = scoring_slots(read, kept, scheduler.page_size)
    if needed >= scheduler.max_total_num_tokens:
        raise PromptTooLong("input_ids", f"{needed} KV slots while scoring", f"< {scheduler.max_total_num_tokens}")


def as_presift_error(error: BaseException) -> PresiftError:
    """`error` as a PresiftError. A defect of the plugin is logged and must not end the scheduler."""
    if isinstance(error, PresiftError):
        return error
    log.error("presift: checking a request failed: %s", type(error).__name__, exc_info=error)
    return InternalError(f"presift: {type(error).__name__}")
