"""Interpreting: a prompt of the target's token ids as a draft of another vocabulary reads it, and its lookahead back.

The text is what both have in common. It is decoded from the target's ids, and used only if it gives the same ids again:
then every offset is right, whatever the prompt came from. The target's special and template tokens are plain text to
the draft. Knows tokenizers; knows no policy and no draft service. No text is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from presift.core.errors import InvalidRequest
from presift.core.fingerprint import fingerprint

# Of the prompt, so many of the draft's tokens are decoded with its lookahead: some decoders trim what comes first.
_CONTEXT_TOKENS = 8


@dataclass(frozen=True, slots=True, eq=False)
class BridgedPrompt:
    """One prompt in both vocabularies: the draft's `ids`, uint32[m], and the characters [start, end) of each token,
    int64[m, 2] of the draft's and int64[n, 2] of the target's."""

    ids: NDArray[np.uint32]
    draft_offsets: NDArray[np.int64]
    target_offsets: NDArray[np.int64]

    def draft_window(self, window: int) -> int:
        """How many of the draft's last tokens hold what the target's last `window` do, at least 1."""
        start = self.target_offsets[-window:, 0].min()
        return max(1, int(np.count_nonzero(self.draft_offsets[:, 1] > start)))


class VocabularyBridge:
    """Between two tokenizers. Stateless but for them; may be used from many threads."""

    def __init__(self, target: Tokenizer, draft: Tokenizer) -> None:
        # A tokenizer file may ask for both, for training.
        draft.no_truncation()
        draft.no_padding()
        self._target = target
        self._draft = draft
        self.draft_fingerprint = fingerprint(draft.to_str().encode())
        special = {number: token for number, token in draft.get_added_tokens_decoder().items() if token.special}
        self._untold = {number for number, token in special.items() if target.token_to_id(token.content) is None}

    def read(self, token_ids: NDArray[np.uint32]) -> BridgedPrompt:
        """The prompt `token_ids`, uint32[n] of the target. Raises InvalidRequest unless its text gives them again."""
        ids = token_ids.tolist()
        text = self._target.decode(ids, skip_special_tokens=False)
        ours = self._target.encode(text, add_special_tokens=False)
        if ours.ids != ids:
            limit = "ids that the tokenizer gives for their text, as a draft of another vocabulary needs"
            raise InvalidRequest("prompt", "token ids of no text", limit)
        theirs = self._draft.encode(text)
        end = _without_closing(theirs)
        return BridgedPrompt(np.array(theirs.ids[:end], dtype=np.uint32), _offsets(theirs)[:end], _offsets(ours))

    def lookahead(self, reading: BridgedPrompt, draft_ids: Sequence[int], count: int) -> tuple[int, ...]:
        """At most `count` of the target's ids for what the draft generated after the prompt.

        It is tokenised by itself, so that nothing merges across the prompt's end. Special tokens that the target does
        not have are left out, and so is a last character of which a part is missing.
        """
        before = reading.ids[-_CONTEXT_TOKENS:].tolist()
        told = [number for number in draft_ids if number not in self._untold]
        start = self._draft.decode(before, skip_special_tokens=False)
        text = self._draft.decode([*before, *told], skip_special_tokens=False).removeprefix(start)
        encoding = self._target.encode(text.rstrip("\ufffd"), add_special_tokens=False)
        return tuple(encoding.ids[:count])


def _without_closing(encoding: Encoding) -> int:
    """How many tokens come before the specials that the tokenizer itself puts at the end: after those the draft would
    have nothing to say."""
    end = len(encoding.ids)
    while end and encoding.special_tokens_mask[end - 1]:
        end -= 1
    return end


def _offsets(encoding: Encoding) -> NDArray[np.int64]:
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
