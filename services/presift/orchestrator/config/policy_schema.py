"""The keys of a policy file with their types and ranges. `policy_file` checks how values fit together.

Most keys are orchestrator settings with the same name, type and range. The windows that score a prompt, pools and
kernels are not keys: they are the same for all requests.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, create_model

from presift.orchestrator.config.policy_settings import PolicySettings
from presift.orchestrator.domain.request import TENANT_PATTERN

KEYS = (
    "compress_above_tokens",
    "capacity",
    "lookahead_tokens",
    "kv_capacity",
    "kv_selection",
    "kv_lookahead_tokens",
    "kv_lookahead",
    "kv_first_full_tokens",
    "kv_renew_every",
    "kv_renew_window",
    "cascade_capacity",
    "auto_coverage",
    "route_order",
)


class _Mapping(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BudgetMapping(_Mapping):
    """Types only; `Budget` checks the ranges."""

    max_prompt_tokens: Annotated[int, Strict()] = 0
    max_kv_tokens: Annotated[int, Strict()] = 0
    max_ttft_ms: Annotated[int, Strict()] = 0
    min_coverage: Annotated[float, Strict()] = 0.0
    strict: Annotated[bool, Strict()] = False


class WithBudget(_Mapping):
    budget: BudgetMapping = BudgetMapping()


def _field_of_setting(name: str) -> Any:
    """The setting's type and range, optional. Numbers must be YAML numbers, not text or booleans."""
    field = PolicySettings.model_fields[name]
    is_enum = isinstance(field.annotation, type) and issubclass(field.annotation, Enum)
    return Annotated[(field.annotation, *field.metadata, Strict(not is_enum))], None


if TYPE_CHECKING:
    KeysMapping = WithBudget
else:
    KeysMapping = create_model("KeysMapping", __base__=WithBudget, **{name: _field_of_setting(name) for name in KEYS})


class BandMapping(KeysMapping):
    up_to_tokens: Annotated[int, Strict()] | None = None


class LevelMapping(KeysMapping):
    bands: tuple[BandMapping, ...] = ()


class PolicyFileMapping(LevelMapping):
    models: dict[Annotated[str, Field(min_length=1)], LevelMapping] = Field(default_factory=dict)
    tenants: dict[Annotated[str, Field(pattern=TENANT_PATTERN)], LevelMapping] = Field(default_factory=dict)
