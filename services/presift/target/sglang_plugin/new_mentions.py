"""Whether an answer has mentioned something new of its prompt since its KV was selected.

A selection keeps what the answer attended to when it was made. An answer that goes on to something else, such as the
next item of a list, needs other places of the prompt: until the next selection it states the new name with an old value
(tests/bench/LOG.md, 2026-11-30). The new name is mostly a token that is rare in the prompt and new in the answer.

Only token ids count: nothing is read from the device, and all ranks of an engine decide alike.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from presift.core.policies.spec_kv import LEAST_RENEWAL_TOKENS

# A token is rare if it occurs at most so often in the prompt. Words of the language occur more often in a long prompt.
_RARE = 8


@dataclass(slots=True)
class NewMentions:
    """Follows one answer to `prompt`. Its tokens before `begin` do not count: the newest selection has read them, or
    nothing may be due before."""

    prompt: array[int] = field(repr=False)
    begin: int = 0
    _seen: int = 0
    _is_found: bool = False
    # int64[rare tokens], ascending. Counted when it is first needed: most requests are never renewed.
    _rare: NDArray[np.int64] | None = field(default=None, repr=False)

    def restart(self, begin: int) -> None:
        """Count only the tokens of the answer from `begin` on."""
        self.begin, self._is_found = begin, False

    def observe(self, answer: Sequence[int], window: int) -> bool:
        """Whether `answer`, all tokens generated so far, has from `begin` on a new mention, and at least
        LEAST_RENEWAL_TOKENS tokens.

        A token is new if it is not among the `window` tokens before it. Each token is looked at once.
        """
        for place in range(max(self._seen, self.begin), len(answer)):
            is_new = answer[place] not in answer[max(0, place - window) : place]
            self._is_found = self._is_found or (is_new and self._is_rare(answer[place]))
        self._seen = len(answer)
        return self._is_found and len(answer) - self.begin >= LEAST_RENEWAL_TOKENS

    def _is_rare(self, token: int) -> bool:
        """Whether the prompt has `token`, and at most `_RARE` times."""
        if self._rare is None:
            found, counts = np.unique(np.asarray(self.prompt, dtype=np.int64), return_counts=True)
            self._rare = found[counts <= _RARE]
        place = int(np.searchsorted(self._rare, token))
        return place < len(self._rare) and int(self._rare[place]) == token
