"""KV selections of earlier turns, so that a later turn of a conversation can reuse one. Holds no text."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from presift.core.kv_plan import KvPlan
from presift.core.plan import ModelInfo
from presift.orchestrator.planning.salted_key import salted_key


@dataclass(frozen=True, slots=True)
class StoredSelection:
    """A KV plan that was applied, its `prompt_tokens` said, where it came from, and what it covers: by the draft's
    mask, or by its estimate where the target chose."""

    kv_plan: KvPlan
    draft: ModelInfo
    coverage: float | None
    kv_coverage: float | None = None


class SelectionStore:
    """The last `entries` turns, by prompt and salt: nobody goes on with another tenant's."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._turns: OrderedDict[str, StoredSelection] = OrderedDict()

    def __len__(self) -> int:
        return len(self._turns)

    def remember(self, token_ids: NDArray[np.uint32], turn: StoredSelection, salt: str) -> None:
        """`turn` answered this prompt. A later turn is remembered under its own prompt with the earlier selection."""
        key = salted_key(token_ids, salt)
        self._turns[key] = turn
        self._turns.move_to_end(key)
        while len(self._turns) > self._entries:
            self._turns.popitem(last=False)

    def recall(self, token_ids: NDArray[np.uint32], salt: str) -> StoredSelection | None:
        """The turn that answered exactly this prompt, if it is still known."""
        key = salted_key(token_ids, salt)
        if key not in self._turns:
            return None
        self._turns.move_to_end(key)
        return self._turns[key]
