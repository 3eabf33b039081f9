"""The service token: a shared secret that authenticates presift's services to each other."""

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
    """A single token that never changes. Raises PresiftError, without the token, if it is not allowed."""
    return FileWatcher((), lambda: _checked(setting, [token]))


def tokens_from_file(setting: str, path: Path) -> Tokens:
    """The tokens in a file, one per line, read again when it changes. All are accepted, the first is sent.

    To rotate a token, first put the new one on top everywhere, then remove the old one. Raises PresiftError, without
    the tokens.
    """

    def read() -> tuple[str, ...]:
        lines = read_file(setting, path).decode("ascii", "replace").splitlines()
        return _checked(setting, [line.strip() for line in lines if line.strip()])

    return FileWatcher([path], read)


def bearer(token: str) -> tuple[str, str]:
    """The metadata entry that sends a token."""
    return AUTHORIZATION, f"Bearer {token}"


def bearer_token(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """The token that a caller sent; None if there is none, or more than one."""
    values = [value for key, value in metadata or () if key.lower() == AUTHORIZATION]
    if len(values) != 1 or not isinstance(values[0], str) or not values[0].lower().startswith(_SCHEME):
        return None
    return values[0][len(_SCHEME) :].strip()


def is_one_of(token: str, tokens: Iterable[str]) -> bool:
    """Compares in constant time."""
    digest = sha256(token.encode()).digest()
    return any([hmac.compare_digest(digest, sha256(each.encode()).digest()) for each in tokens])


def _checked(setting: str, tokens: list[str]) -> tuple[str, ...]:
    if not tokens:
        raise PresiftError(f"{setting} contains no token")
    for token in tokens:
        if len(token) < MIN_CHARACTERS or not (token.isascii() and token.isprintable()) or " " in token:
            raise PresiftError(f"{setting}: a token needs at least {MIN_CHARACTERS} printable characters and no spaces")
    return tuple(tokens)
