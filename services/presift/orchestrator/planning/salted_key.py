"""A name for a prompt's tokens in the namespace of a salt: nobody with another salt comes to the same."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def salted_key(token_ids: NDArray[np.uint32], salt: str) -> str:
    """Hexadecimal, 256 bits."""
    # The salt's length first: no salt may look like the beginning of another one's tokens.
    said = salt.encode()
    head = len(said).to_bytes(8, "little") + said
    return hashlib.blake2b(head + token_ids.astype("<u4").tobytes(), digest_size=32).hexdigest()
