"""Authenticators with known keys: two of tenant acme, one of tenant other."""

from presift.orchestrator.api.auth.api_keys import KeyEntry, digest_of, new_key
from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.api.auth.key_file import Keys
from presift.rpc.security.file_watcher import FileWatcher

ACME, ACME_TOO, OTHER = (new_key() for _ in range(3))
ENTRIES = tuple(
    KeyEntry(f"key-{number}", tenant, digest_of(key))
    for number, (tenant, key) in enumerate((("acme", ACME), ("acme", ACME_TOO), ("other", OTHER)))
)


def door(limits=None, tokens=None):
    """tenant -> its limits."""
    return Authenticator(FileWatcher((), lambda: Keys(ENTRIES, limits or {})), tokens)


def shows(key, *more):
    """The metadata of a caller with this key."""
    return (("authorization", f"Bearer {key}"), *more)
