"""Reads the URL of a Redis or Valkey server. What a client would ignore is refused: it would use another server.

The URL contains the password, so no error quotes any part of it.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio.connection import parse_url

from presift.core.errors import InvalidRequest

_FORM = "redis://[[USER]:PASSWORD@]HOST[:PORT][/NUMBER], rediss://... or unix:///PATH"
_ENCODED = "encode # as %23, / as %2F, ? as %3F and @ as %40 in a password"


def connection_options(url: str) -> dict[str, Any]:
    """redis-py's options of a connection. Raises InvalidRequest, which never quotes the URL."""
    if "#" in url:
        raise _refused("a URL with a fragment (#)", f"one without; {_ENCODED}")
    try:
        parts = urlsplit(url)
        login, _, host = parts.netloc.rpartition("@")
        if "," in host:
            raise _refused(
                "a URL with a list of hosts", "a URL of one host: presift supports neither Sentinel nor Cluster"
            )
        if "@" in login:
            raise _refused("a URL with more than one @", f"{_FORM}; {_ENCODED}")
        if parts.scheme == "unix":
            _check_socket(host, parts.path)
        elif not parts.hostname:
            raise _refused("a URL without a host", f"{_FORM}; {_ENCODED}")
        elif not re.fullmatch(r"/?|/[0-9]+", parts.path):
            raise _refused("a URL whose path is no database number", f"{_FORM}; {_ENCODED}")
        return dict(parse_url(url))
    except (ValueError, TypeError):  # its message may quote part of the password
        raise _refused("an unreadable URL", f"{_FORM}; {_ENCODED}") from None


def _check_socket(host: str, path: str) -> None:
    if host or not path.strip("/"):
        raise _refused("a unix:// URL without an absolute path", "unix:///PATH or unix://[USER]:PASSWORD@/PATH")


def _refused(value: str, limit: str) -> InvalidRequest:
    return InvalidRequest("cache_url", value, limit)
