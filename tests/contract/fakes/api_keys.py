"""Authenticators with known keys: two of tenant acme, one of tenant other, an administrator's of ops."""

from presift.orchestrator.api.auth.api_keys import KeyEntry, digest_of, new_key
from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.api.auth.key_file import Keys
from presift.rpc.security.file_watcher import FileWatcher

ACME, ACME_TOO, OTHER, ADMIN = (new_key() for _ in range(4))
ENTRIES = tuple(
    KeyEntry(f"key-{number}", tenant, digest_of(key), is_admin=key == ADMIN)
    for number, (tenant, key) in enumerate((("acme", ACME), ("acme", ACME_TOO), ("other", OTHER), ("ops", ADMIN)))
)


def key_authenticator(limits=None, tokens=None):
    """tenant -> its limits."""
    return Authenticator(FileWatcher((), lambda: Keys(ENTRIES, limits or {})), tokens)


def bearer(key, *more):
    """The metadata of a caller with this key."""
    return (("authorization", f"Bearer {key}"), *more)
