"""The keys of a policy file, their types and ranges. `policy_file` reads and checks what hangs together.

Most are orchestrator settings by their own names, types and ranges: a setting that learns to say more (a capacity
`auto`, say) does so here too. Windows, pools and kernels are no such keys: they hold for all requests.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, create_model

from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.request import TENANT_PATTERN

KEYS = (
    "compress_above_tokens",
    "capacity",
    "lookahead_tokens",
    "kv_capacity",
    "kv_selection",
    "kv_lookahead_tokens",
    "cascade_capacity",
    "auto_coverage",
    "route_order",
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BudgetPart(_Part):
    """Types alone: `Budget` knows the ranges."""

    max_prompt_tokens: Annotated[int, Strict()] = 0
    max_kv_tokens: Annotated[int, Strict()] = 0
    max_ttft_ms: Annotated[int, Strict()] = 0
    min_coverage: Annotated[float, Strict()] = 0.0
    strict: Annotated[bool, Strict()] = False


class PlainPart(_Part):
    budget: BudgetPart = BudgetPart()


def _as_in_settings(name: str) -> Any:
    """The setting's own type and range; unset unless given. Numbers are numbers: no text, no truth values."""
    field = OrchestratorSettings.model_fields[name]
    is_enum = isinstance(field.annotation, type) and issubclass(field.annotation, Enum)
    return Annotated[(field.annotation, *field.metadata, Strict(not is_enum))], None


if TYPE_CHECKING:
    KeysPart = PlainPart
else:
    KeysPart = create_model("KeysPart", __base__=PlainPart, **{name: _as_in_settings(name) for name in KEYS})


class BandPart(KeysPart):
    up_to_tokens: Annotated[int, Strict()] | None = None


class LevelPart(KeysPart):
    bands: tuple[BandPart, ...] = ()


class FilePart(LevelPart):
    models: dict[Annotated[str, Field(min_length=1)], LevelPart] = Field(default_factory=dict)
    tenants: dict[Annotated[str, Field(pattern=TENANT_PATTERN)], LevelPart] = Field(default_factory=dict)
