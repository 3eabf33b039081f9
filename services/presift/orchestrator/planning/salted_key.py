"""A key for a prompt's tokens in the namespace of a salt: another salt gives another key."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def salted_key(token_ids: NDArray[np.uint32], salt: str) -> str:
    """Hexadecimal, 256 bits."""
    # The length comes first, so that no salt looks like the beginning of another one's tokens.
    encoded = salt.encode()
    head = len(encoded).to_bytes(8, "little") + encoded
    return hashlib.blake2b(head + token_ids.astype("<u4").tobytes(), digest_size=32).hexdigest()
