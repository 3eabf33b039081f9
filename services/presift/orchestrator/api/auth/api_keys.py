"""API keys: created here, shown once, and stored as SHA-256 only. A key has 256 random bits: no slow hash is needed."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

PREFIX = "psk_"


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """An issued key: the name to find and revoke it by, its tenant, and the 64 hex digits of its SHA-256. `is_admin`:
    its callers may see the state of the whole service. `expires`: the last day (UTC) on which it is accepted."""

    name: str
    tenant: str
    sha256: str
    is_admin: bool = False
    expires: date | None = None


def new_key() -> str:
    """A random printable key."""
    return PREFIX + secrets.token_urlsafe(32)


def new_entry(
    key: str, tenant: str, name: str | None = None, *, admin: bool = False, expires: date | None = None
) -> dict[str, str | bool]:
    """The entry of a new key for the key file. Its default name begins with the tenant's."""
    digest = digest_of(key)
    entry = {"name": name or f"{tenant[:55]}-{digest[:8]}", "tenant": tenant, "sha256": digest}
    return entry | ({"admin": True} if admin else {}) | ({} if expires is None else {"expires": expires.isoformat()})


def digest_of(key: str) -> str:
    """64 hex digits; `key` may be any string."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def entry_of(key: str, entries: Iterable[KeyEntry]) -> KeyEntry | None:
    """The entry of `key`. Compares with all of them in constant time, so that the time reveals nothing about them."""
    digest, found = digest_of(key), None
    for entry in entries:
        if hmac.compare_digest(digest, entry.sha256):
            found = entry
    return found
