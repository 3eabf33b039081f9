"""The plugin's door: a request with our parameter is checked, and becomes one on a compressed entry or is refused."""

from __future__ import annotations

import logging
from array import array
from typing import Any

from presift.core.errors import InternalError, InvalidRequest, PresiftError, PromptTooLong, RouteUnsupported
from presift.core.kv_plan import KvPlan, check_plan, scoring_slots
from presift.target.sglang_plugin.custom_params import KEY, from_text
from presift.target.sglang_plugin.states import DecodeState, PassthroughState, Report, entry_name

log = logging.getLogger(__name__)


def admit(scheduler: Any, received: Any, unsupported: str | None) -> None:
    """Rewrite `received` (a TokenizedGenerateReqInput) in place. Raises PresiftError."""
    if unsupported is not None:
        raise RouteUnsupported("route", "spec_kv", "another", f"spec_kv is not supported here: {unsupported}")
    _refuse_what_cannot_work(received)
    plan = from_text(received.sampling_params.custom_params[KEY])
    tokens = array("q", received.input_ids)
    prompt_tokens = plan.covered_tokens(len(tokens))
    sampling = received.sampling_params
    if sampling.max_new_tokens is None:
        # As many as fit: SGLang would count from the entry's length.
        sampling.max_new_tokens = max(1, scheduler.model_config.context_len - len(tokens))
    kept = _check(scheduler, plan, len(tokens), prompt_tokens, sampling.max_new_tokens)
    sampling.custom_params = dict(sampling.custom_params)
    if prompt_tokens <= plan.capacity_for(scheduler.page_size):
        sampling.custom_params[KEY] = PassthroughState(Report(len(tokens), len(tokens), 0))
        return
    _check_room(scheduler, plan, prompt_tokens, kept)
    prompt, suffix = tokens[:prompt_tokens], tokens[prompt_tokens:]
    entry = entry_name(plan, prompt, kept, (received.extra_key, received.cache_salt))
    state = DecodeState(plan, prompt, kept, entry, received.extra_key, len(suffix))
    sampling.custom_params[KEY] = state
    received.input_ids = state.pseudo_key + prompt[-1:] + suffix
    received.extra_key = entry


def refuse(scheduler: Any, received: Any, error: PresiftError) -> None:
    """Answer `received` with an abort that names the reason."""
    from sglang.srt.managers.io_struct import AbortReq  # noqa: PLC0415 - in the scheduler alone

    # The class travels in `err_type`, for our own services to read.
    kind = type(error).__name__
    status = 500 if isinstance(error, InternalError) else 400
    reason = {"type": "abort", "status_code": status, "message": error.message, "err_type": f"{KEY}.{kind}"}
    answer = AbortReq(rid=received.rid, finished_reason=reason)
    scheduler.ipc_channels.send_to_tokenizer.send_output(answer, received)


def _refuse_what_cannot_work(received: Any) -> None:
    """What would see the entry's name instead of the prompt's tokens, or is not proven with it."""
    sampling = received.sampling_params
    obstacles = {
        "n": sampling.n != 1,
        "beam_width": (getattr(sampling, "beam_width", None) or 1) > 1,
        "repetition_penalty": sampling.repetition_penalty != 1.0,
        "frequency_penalty": sampling.frequency_penalty != 0.0,
        "presence_penalty": sampling.presence_penalty != 0.0,
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
    for name, applies in obstacles.items():
        if applies:
            raise InvalidRequest(name, "set", "left out where KV is dropped")


def _check(scheduler: Any, plan: KvPlan, tokens: int, prompt_tokens: int, max_new_tokens: int) -> int:
    """How many KV pairs per layer and head are kept. SGLang's own checks see the entry's length, not the prompt's."""
    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    kv_heads = pool.get_key_buffer(pool.start_layer).shape[1]
    kept = check_plan(
        plan,
        prompt_tokens,
        layers=scheduler.model_config.num_hidden_layers,
        kv_heads=kv_heads,
        page_tokens=scheduler.page_size,
    )
    vocabulary_size, context = scheduler.model_config.vocab_size, scheduler.model_config.context_len
    if max(plan.lookahead_token_ids, default=0) >= vocabulary_size:
        # SGLang checked the prompt's alone; one that the embedding lacks would end the scheduler.
        raise InvalidRequest(f"{KEY}.lookahead", max(plan.lookahead_token_ids), f"< {vocabulary_size}")
    if tokens + max_new_tokens > context:
        sizes = f"{tokens} prompt tokens and {max_new_tokens} new ones"
        raise PromptTooLong("input_ids", tokens, f"<= {context - max_new_tokens}", f"{sizes} exceed {context}")
    return kept


def _check_room(scheduler: Any, plan: KvPlan, prompt_tokens: int, kept: int) -> None:
    read = prompt_tokens + len(plan.lookahead_token_ids)
    if read >= scheduler.max_req_len:
        raise PromptTooLong("input_ids", f"{read} tokens with the lookahead", f"< {scheduler.max_req_len}")
    # While it is scored, a prompt holds its own KV, the lookahead's and the entry's.
    # Less than the pool: one that SGLang can never admit would stand at the head of its queue for ever.
    needed = scoring_slots(read, kept, scheduler.page_size)
    if needed >= scheduler.max_total_num_tokens:
        raise PromptTooLong("input_ids", f"{needed} KV slots while scoring", f"< {scheduler.max_total_num_tokens}")


def checked(error: BaseException) -> PresiftError:
    """Any error as one of ours: a defect here must not end the scheduler, nor go unseen."""
    if isinstance(error, PresiftError):
        return error
    log.error("presift: a request could not be read: %s", type(error).__name__, exc_info=error)
    return InternalError(f"presift: {type(error).__name__}")
