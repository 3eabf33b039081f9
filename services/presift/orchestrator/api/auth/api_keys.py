"""API keys: made here, shown once, and kept as SHA-256 alone. A key has 256 random bits: no slow hash is needed."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

PREFIX = "psk_"


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key that was given out: its name (to find and revoke it by), the tenant whose it is, 64 hex digits."""

    name: str
    tenant: str
    sha256: str


def new_key() -> str:
    """A key that nobody can guess, printable."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """64 hex digits, whatever the key is."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def entry_of(key: str, entries: Iterable[KeyEntry]) -> KeyEntry | None:
    """The entry of `key`. All are compared, each in constant time, so that the time says nothing of them."""
    digest, found = digest_of(key), None
    for entry in entries:
        if hmac.compare_digest(digest, entry.sha256):
            found = entry
    return found
