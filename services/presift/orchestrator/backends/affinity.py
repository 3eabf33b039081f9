"""Affinity key: sends prompts with the same document to the same replica. All orchestrators compute the same key.

The key depends on the document alone: another question or system prompt does not change it. It only places requests.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from presift.core.spans import covered
from presift.orchestrator.domain.request import TokenizedPrompt

KEY_TOKENS = 1024
# A shorter run of unprotected tokens is no document.
_MIN_RUN_TOKENS = 64


def affinity_key(tokens: TokenizedPrompt) -> str:
    """The key of up to KEY_TOKENS of the first run of unprotected tokens. If the run is too short, the tokens after it
    count as well; if everything is protected, the beginning counts."""
    prompt_tokens = int(tokens.ids.size)
    free = ~covered(tokens.protected, prompt_tokens)
    start = int(free.argmax())  # 0 if everything is protected
    run = free[start : start + KEY_TOKENS]
    length = int(run.size if run.all() else run.argmin())
    return key_of(tokens.ids[start : start + (length if length >= _MIN_RUN_TOKENS else KEY_TOKENS)])


def key_of(ids: NDArray[np.uint32]) -> str:
    """The key of the first KEY_TOKENS ids, uint32[tokens]."""
    return hashlib.blake2b(ids[:KEY_TOKENS].astype("<u4").tobytes(), digest_size=16).hexdigest()
