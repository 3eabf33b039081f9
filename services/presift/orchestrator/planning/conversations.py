"""KV selections of earlier turns, so that a later turn of a conversation can continue one. Holds no text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from presift.core.kv_plan import KvPlan
from presift.core.plan import ModelInfo
from presift.orchestrator.planning.salted_key import salted_key


@dataclass(frozen=True, slots=True)
class StoredSelection:
    """A KV plan that was applied, with its `prompt_tokens` set; its draft, if it had one; and its coverage: that of the
    draft's mask, or the draft's estimate if the target selected."""

    kv_plan: KvPlan
    draft: ModelInfo | None
    coverage: float | None
    kv_coverage: float | None = None


class SelectionStore:
    """The last `entries` selections by prompt and salt: tenants with different salts never share one."""

    def __init__(self, entries: int) -> None:
        self._selections: LRUCache[str, StoredSelection] = LRUCache(entries)

    def __len__(self) -> int:
        return len(self._selections)

    def remember(self, token_ids: NDArray[np.uint32], selection: StoredSelection, salt: str) -> None:
        """This selection answered this prompt. A later turn is stored under its own prompt with the same selection."""
        if self._selections.maxsize:
            self._selections[salted_key(token_ids, salt)] = selection

    def recall(self, token_ids: NDArray[np.uint32], salt: str) -> StoredSelection | None:
        """The selection that answered exactly this prompt, if it is still known."""
        selection: StoredSelection | None = self._selections.get(salted_key(token_ids, salt))
        return selection
