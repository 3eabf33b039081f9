"""The service token: a shared secret by which presift's services know one another."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from presift.core.errors import PresiftError
from presift.rpc.security.file_watcher import FileWatcher, read_file

AUTHORIZATION = "authorization"
MIN_CHARACTERS = 16
_SCHEME = "bearer "

Tokens = FileWatcher[tuple[str, ...]]


def fixed_tokens(setting: str, token: str) -> Tokens:
    """One that never changes. Raises PresiftError, which does not quote it, for one that cannot be."""
    return FileWatcher((), lambda: _checked(setting, [token]))


def tokens_of(setting: str, path: Path) -> Tokens:
    """Those in a file, one a line, read again when it changes: all are accepted, the first is sent. So a new one is
    put first everywhere, and the old one taken away after. Raises PresiftError, which quotes none.
    """

    def read() -> tuple[str, ...]:
        lines = read_file(setting, path).decode("ascii", "replace").splitlines()
        return _checked(setting, [line.strip() for line in lines if line.strip()])

    return FileWatcher([path], read)


def bearer(token: str) -> tuple[str, str]:
    """The metadata that shows a token."""
    return AUTHORIZATION, f"Bearer {token}"


def shown(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """The token that a caller shows; None where there is none, or more than one."""
    values = [value for key, value in metadata or () if key.lower() == AUTHORIZATION]
    if len(values) != 1 or not isinstance(values[0], str) or not values[0].lower().startswith(_SCHEME):
        return None
    return values[0][len(_SCHEME) :].strip()


def is_one_of(token: str, tokens: Iterable[str]) -> bool:
    """In a time that says nothing about how much of it is right, nor of which."""
    digest = sha256(token.encode()).digest()
    return any([hmac.compare_digest(digest, sha256(each.encode()).digest()) for each in tokens])


def _checked(setting: str, tokens: list[str]) -> tuple[str, ...]:
    if not tokens:
        raise PresiftError(f"{setting} holds no token")
    for token in tokens:
        if len(token) < MIN_CHARACTERS or not (token.isascii() and token.isprintable()) or " " in token:
            raise PresiftError(f"{setting}: a token has at least {MIN_CHARACTERS} printable characters, no spaces")
    return tuple(tokens)
