"""Translates a prompt from the target's token ids to those of a draft with another vocabulary, and the lookahead back.

The common ground is the text. It is decoded from the target's ids, and used only if encoding it gives the same ids:
then all offsets are right, wherever the prompt came from. The target's special and template tokens are plain text to
the draft. This module knows tokenizers, but no policy and no draft service. It stores no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from presift.core.errors import InvalidRequest
from presift.core.fingerprint import fingerprint
from presift.orchestrator.prompt.raw_tokens import encode, encoding_of, text_of
from presift.orchestrator.prompt.tokenizing_limit import byte_count, check_length

# Prompt tokens decoded before the lookahead: some decoders strip the beginning of a text.
_CONTEXT_TOKENS = 8


@dataclass(frozen=True, slots=True, eq=False)
class BridgedPrompt:
    """One prompt in both vocabularies.

    `ids`: the draft's token ids, uint32[m]. Offsets are the characters [start, end) of each token: int64[m, 2] for the
    draft, int64[n, 2] for the target.
    """

    ids: NDArray[np.uint32]
    draft_offsets: NDArray[np.int64]
    target_offsets: NDArray[np.int64]

    def draft_window(self, window: int) -> int:
        """The number of last draft tokens, at least 1, that cover the text of the target's last `window` tokens."""
        start = self.target_offsets[-window:, 0].min()
        return max(1, int(np.count_nonzero(self.draft_offsets[:, 1] > start)))


class VocabularyBridge:
    """Translates between two tokenizers. Thread-safe: it has no other state."""

    def __init__(self, target: Tokenizer, draft: Tokenizer) -> None:
        # A tokenizer file may turn on both, left over from training.
        draft.no_truncation()
        draft.no_padding()
        self._target = target
        self._draft = draft
        self.draft_fingerprint = fingerprint(draft.to_str().encode())
        added = draft.get_added_tokens_decoder().items()
        special = {number: token.content for number, token in added if token.special}
        self._unknown_to_target = {number for number, text in special.items() if target.token_to_id(text) is None}

    def translate(self, token_ids: NDArray[np.uint32]) -> BridgedPrompt:
        """The prompt `token_ids`, uint32[n] of the target. Raises InvalidRequest unless its text encodes to them,
        and PromptTooLong as `check_length` does."""
        ids = token_ids.tolist()
        text = text_of(self._target, ids, skip_special_tokens=False)
        check_length(self._draft, text, byte_count(text))
        target = encoding_of(self._target, text, add_special_tokens=False)
        if target.ids != ids:
            limit = "token ids that encode their own text, because the draft has another vocabulary"
            raise InvalidRequest("prompt", "token ids that do not match their text", limit)
        draft = encoding_of(self._draft, text, add_special_tokens=True)
        end = _before_closing_tokens(draft)
        return BridgedPrompt(np.array(draft.ids[:end], dtype=np.uint32), _offsets(draft)[:end], _offsets(target))

    def translate_lookahead(self, prompt: BridgedPrompt, draft_ids: Sequence[int], count: int) -> tuple[int, ...]:
        """At most `count` of the target's ids for `draft_ids`, which the draft generated after `prompt`.

        The text is encoded on its own, so that no token merges with the prompt's end. Special tokens that the target
        does not have are left out, and so is an incomplete last character.
        """
        before = prompt.ids[-_CONTEXT_TOKENS:].tolist()
        known = [number for number in draft_ids if number not in self._unknown_to_target]
        start = self._draft.decode(before, skip_special_tokens=False)
        text = self._draft.decode([*before, *known], skip_special_tokens=False).removeprefix(start)
        return tuple(encode(self._target, text.rstrip("\ufffd"), add_special_tokens=False)[:count])


def _before_closing_tokens(encoding: Encoding) -> int:
    """The number of tokens before the special tokens that the tokenizer appends: after those, a draft generates
    nothing."""
    end = len(encoding.ids)
    while end and encoding.special_tokens_mask[end - 1]:
        end -= 1
    return end


def _offsets(encoding: Encoding) -> NDArray[np.int64]:
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
