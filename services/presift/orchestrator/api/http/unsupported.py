"""Parameters that presift knows but does not carry out: rejected by name unless their value requests nothing.

Neutral values are accepted because frameworks send them by default. null is the same as leaving a parameter out.
Parameters that are in no table are ignored, and the answer names them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.schema import Ignored

# For the caller's own bookkeeping, or for a service other than this one: they change no answer.
WITHOUT_EFFECT = frozenset(
    {
        *("custom_labels", "metadata", "prompt_cache_key", "prompt_cache_retention", "request_id", "rid"),
        *("safety_identifier", "service_tier", "store", "user"),
    }
)
# Ignored with a notice unless neutral: without them the answer is the same, but perhaps later or by other means.
NOTED: dict[str, tuple[Any, ...]] = {
    "guided_decoding_backend": (),
    "priority": (0,),
    "spaces_between_special_tokens": (True,),
}
# The values that request nothing, besides null and EMPTY. What one endpoint carries out is still unsupported at the
# other.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    # OpenAI's
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": (),
    "messages": (),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt": (),
    "suffix": (),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    # SGLang's
    "bootstrap_host": (),
    "bootstrap_port": (),
    "bootstrap_room": (),
    "cache_salt": (),
    "custom_logit_processor": (),
    "custom_params": (),
    "data_parallel_rank": (),
    "disagg_prefill_dp_rank": (),
    "extra_key": (),
    "images_config": (),
    "input_ids": (),
    "lora_path": (),
    "max_dynamic_patch": (),
    "min_dynamic_patch": (),
    "no_stop_trim": (False,),
    "return_cached_tokens_details": (False,),
    "return_hidden_states": (False,),
    "return_input_ids_in_sglext": (False,),
    "return_meta_info": (False,),
    "return_output_ids_in_sglext": (False,),
    "return_routed_experts": (False,),
    "return_sampling_mask": (False,),
    "return_spec_tokens_details": (False,),
    "routed_dp_rank": (),
    "routed_experts_start_len": (0,),
    "sampling_logprobs_mode": (),
    "session_id": (),
    "session_params": (),
    "stop_regex": (),
    "task": (),
    "use_audio_in_video": (False,),
    "video_config": (),
    # vLLM's
    "allowed_token_ids": (),
    "bad_words": (),
    "chat_template": (),
    "documents": (),
    "early_stopping": (False,),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": (),
    "mm_processor_kwargs": (),
    "prompt_logprobs": (),
    "return_tokens_as_token_ids": (False,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": (),
}
EMPTY: tuple[Any, ...] = ("", [], {})
# OpenAI's clients ask for a search with the defaults by an empty object.
_ASKS_WHEN_EMPTY = frozenset({"web_search_options"})
# A chat template writes the special tokens itself; of a text they are part.
_ADDS_SPECIAL_TOKENS = "add_special_tokens"
_DEFAULT_REASON = "this server does not support it"


def supported_parameters(given: dict[str, Any], known: Container[str], ignored: Ignored) -> dict[str, Any]:
    """The parameters to validate and carry out; `known` are those of the endpoint. Adds to `ignored`. Raises
    InvalidRequest for an unsupported one."""
    supported = {name: value for name, value in given.items() if value is not None and name not in WITHOUT_EFFECT}
    for name in [name for name in supported if name not in known]:
        if name == _ADDS_SPECIAL_TOKENS:
            _require_neutral(name, supported.pop(name), ("prompt" in known,))
        elif name in NEUTRAL:
            _require_neutral(name, supported.pop(name), NEUTRAL[name])
        elif name in NOTED and _is_any(supported[name], NOTED[name]):
            del supported[name]
    for name in [name for name in supported if name in NOTED]:
        ignored[name] = None
        del supported[name]
    return supported


def check_neutral(given: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], why: Mapping[str, str]) -> None:
    """Raise InvalidRequest for a parameter that asks for something that this server does not do."""
    for name, values in neutral.items():
        if given.get(name) is not None:
            _require_neutral(name, given[name], values, why.get(name, _DEFAULT_REASON))


def neutral_values(name: str, others: Iterable[Any]) -> tuple[Any, ...]:
    """What requests nothing, besides null: `others`, and what is empty."""
    return (*others, *(() if name in _ASKS_WHEN_EMPTY else EMPTY))


def _require_neutral(name: str, value: Any, others: tuple[Any, ...], why: str = _DEFAULT_REASON) -> None:
    neutral = neutral_values(name, others)
    if not _is_any(value, neutral):
        allowed = " or ".join(str(each) for each in others)
        raise InvalidRequest(name, brief(value), "left out" + (f", or {allowed}" if allowed else "") + f": {why}")


def _is_any(value: object, neutral: tuple[Any, ...]) -> bool:
    # False == 0 in Python; not in JSON.
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)
