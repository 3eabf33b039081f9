"""KV selections of earlier turns, so that a later turn of a conversation can continue one. Holds no text."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from presift.core.kv_plan import KvPlan
from presift.core.plan import ModelInfo
from presift.core.policies import SpecKv
from presift.orchestrator.planning.salted_key import salted_key
from presift.rpc import codec
from presift.v1 import target_pb2

# Memory of a selection without its packed plan: key, policy, model and objects (measured, rounded up).
SELECTION_BYTES = 4096


@dataclass(frozen=True, slots=True)
class StoredSelection:
    """A KV plan that was applied, with its `prompt_tokens` set; its draft, if it had one; and its coverage: that of the
    draft's mask, or the draft's estimate if the target selected."""

    kv_plan: KvPlan
    draft: ModelInfo | None
    coverage: float | None
    kv_coverage: float | None = None


@dataclass(frozen=True, slots=True)
class _Packed:
    """A stored selection whose plan is in the wire form: a mask takes one bit per token, a span some bytes.

    The policy is kept, because the wire form leaves out what no target reads.
    """

    plan: bytes
    policy: SpecKv
    draft: ModelInfo | None
    coverage: float | None
    kv_coverage: float | None

    @classmethod
    def of(cls, stored: StoredSelection) -> _Packed:
        plan = codec.kv_plan_to_wire(stored.kv_plan).SerializeToString()
        return cls(plan, stored.kv_plan.policy, stored.draft, stored.coverage, stored.kv_coverage)

    def unpacked(self) -> StoredSelection:
        plan = codec.kv_plan_from_wire(target_pb2.KvPlan.FromString(self.plan))
        return StoredSelection(replace(plan, policy=self.policy), self.draft, self.coverage, self.kv_coverage)


class SelectionStore:
    """The last selections by prompt and salt, in up to `memory_bytes`: tenants with different salts never share one."""

    def __init__(self, memory_bytes: int) -> None:
        self._selections: LRUCache[str, _Packed] = LRUCache(
            memory_bytes, lambda packed: SELECTION_BYTES + len(packed.plan)
        )

    def __len__(self) -> int:
        return len(self._selections)

    def remember(self, token_ids: NDArray[np.uint32], selection: StoredSelection, salt: str) -> None:
        """This selection answered this prompt. A later turn is stored under its own prompt with the same selection."""
        with suppress(ValueError):  # larger than the memory
            self._selections[salted_key(token_ids, salt)] = _Packed.of(selection)

    def recall(self, token_ids: NDArray[np.uint32], salt: str) -> StoredSelection | None:
        """The selection that answered exactly this prompt, if it is still known."""
        packed: _Packed | None = self._selections.get(salted_key(token_ids, salt))
        return None if packed is None else packed.unpacked()
