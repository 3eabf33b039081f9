"""A KV plan as SGLang carries it: one JSON text in `sampling_params.custom_params`.

SGLang passes scalars from its HTTP server to its scheduler, so any client of a stock server can send a plan:
`{"presift": "{\"capacity\": 256, \"lookahead\": [785, 4226]}"}`. Fields that are left out take SpecKv's defaults.
"""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from typing import Any

from presift.core.errors import InvalidRequest
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.policies import KvSelection, Pool, Reduction, SpecKv
from presift.core.spans import Span

KEY = "presift"
_ENUMS = {"pool": Pool, "reduction": Reduction, "selection": KvSelection}
_POLICY = tuple(field.name for field in fields(SpecKv) if field.name not in ("mask", "adaptive"))
_OTHERS = ("protected", "lookahead", "kv_mask", "keep_full_prefix", "prompt_tokens", "report_kept")


def to_text(plan: KvPlan) -> str:
    """The plan as JSON."""
    values: dict[str, Any] = {name: getattr(plan.policy, name) for name in _POLICY}
    values["protected"] = [[span.start, span.end] for span in plan.protected]
    values["lookahead"] = list(plan.lookahead_token_ids)
    values["keep_full_prefix"] = plan.keep_full_prefix
    values["prompt_tokens"] = plan.prompt_tokens
    values["report_kept"] = plan.report_kept
    if plan.kv_mask is not None:
        values["kv_mask"] = mask_to_values(plan.kv_mask)
    return json.dumps(values)


def from_text(text: Any) -> KvPlan:
    """The plan in JSON `text`. Raises InvalidRequest, which names the field."""
    values = _object(text)
    for name in values:
        if name not in (*_POLICY, *_OTHERS):
            raise InvalidRequest(f"{KEY}.{name}", "unknown", f"one of {', '.join((*_POLICY, *_OTHERS))}")
    lookahead = tuple(_integers("lookahead", values.get("lookahead", [])))
    policy = {name: _policy_value(name, values[name]) for name in _POLICY if name in values}
    policy.setdefault("lookahead_tokens", len(lookahead))
    if "capacity" not in policy:
        raise InvalidRequest(f"{KEY}.capacity", "unset", "the number of KV pairs to keep per layer and head")
    return KvPlan(
        SpecKv(**policy),
        protected=tuple(Span(*_integers("protected", each, 2)) for each in _list("protected", values)),
        lookahead_token_ids=lookahead,
        kv_mask=mask_from_values(values["kv_mask"]) if "kv_mask" in values else None,
        keep_full_prefix=_flag("keep_full_prefix", values.get("keep_full_prefix", True)),
        prompt_tokens=_integers("prompt_tokens", [values.get("prompt_tokens", 0)])[0],
        report_kept=_flag("report_kept", values.get("report_kept", False)),
    )


def _object(text: Any) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(KEY, "not JSON", "a JSON object as text") from error
    if not isinstance(values, dict):
        raise InvalidRequest(KEY, type(values).__name__, "a JSON object as text")
    return values


def _policy_value(name: str, value: Any) -> Any:
    kind = _ENUMS.get(name)
    if kind is None:
        return _integers(name, [value])[0]
    try:
        return kind(value)
    except ValueError as error:
        raise InvalidRequest(f"{KEY}.{name}", str(value)[:32], f"one of {', '.join(kind)}") from error


def _list(name: str, values: dict[str, Any]) -> list[Any]:
    value = values.get(name, [])
    if not isinstance(value, list):
        raise InvalidRequest(f"{KEY}.{name}", type(value).__name__, "a list")
    return value


def _integers(name: str, values: Any, count: int | None = None) -> list[int]:
    wrong = not isinstance(values, list) or (count is not None and len(values) != count)
    if wrong or any(type(value) is not int or value < 0 for value in values):
        raise InvalidRequest(f"{KEY}.{name}", "malformed", f"a list of {f'{count} ' if count else ''}integers >= 0")
    return list(values)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{KEY}.{name}", type(value).__name__, "true or false")
    return value


def mask_to_values(mask: KvMask) -> dict[str, Any]:
    """The mask as JSON values: its shape, and its bitset in base64."""
    return {"shape": list(mask.kept.shape), "kept": base64.b64encode(mask.to_bits()).decode()}


def mask_from_values(value: Any) -> KvMask:
    """The inverse of `mask_to_values`. Raises InvalidRequest."""
    try:
        layers, kv_heads, prompt_tokens = _integers("kv_mask.shape", value["shape"], 3)
        bits = base64.b64decode(value["kept"], validate=True)
        return KvMask.from_bits(bits, layers, kv_heads, prompt_tokens)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"{KEY}.kv_mask", "malformed", "shape [3 integers] and kept (base64)") from error
