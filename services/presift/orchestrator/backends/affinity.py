"""Affinity: the key by which a prompt finds the replica that may hold its beginning. The same in every orchestrator.

Taken of the document, not of what stands around it: the same document under another question, or behind another system
prompt, has the same key. It places requests and nothing else.
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
    """Of up to KEY_TOKENS of the first run of unprotected tokens; where that is less than a block, of whatever follows
    as well; where all is protected, of the beginning."""
    prompt_tokens = int(tokens.ids.size)
    free = ~covered(tokens.protected, prompt_tokens)
    start = int(free.argmax())  # 0 where nothing is free
    run = free[start : start + KEY_TOKENS]
    length = int(run.size if run.all() else run.argmin())
    return key_of(tokens.ids[start : start + (length if length >= _MIN_RUN_TOKENS else KEY_TOKENS)])


def key_of(ids: NDArray[np.uint32]) -> str:
    """Of the first KEY_TOKENS of these."""
    return hashlib.blake2b(ids[:KEY_TOKENS].astype("<u4").tobytes(), digest_size=16).hexdigest()
