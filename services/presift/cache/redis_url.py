"""Reads the URL of a Redis or Valkey server. What a client would ignore is refused: it would use another server.

The URL contains the password, so no error quotes any part of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from redis.asyncio.connection import parse_url

from presift.core.errors import InvalidRequest

SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
_PORT, _SENTINEL_PORT = 6379, 26379
# Parameters with the login of the Sentinels; the one before @ is that of the server.
_SENTINEL_LOGIN = {"sentinel_username": "username", "sentinel_password": "password"}

_FORM = "redis://[[USER]:PASSWORD@]HOST[:PORT][/NUMBER], rediss://... or unix:///PATH"
_SENTINEL_FORM = "redis+sentinel://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/SERVICE[/NUMBER]"
_CLUSTER_FORM = "redis+cluster://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]"
_ENCODED = "encode # as %23, / as %2F, ? as %3F and @ as %40 in a password"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """`options` are redis-py's, of a connection. With `sentinels` (host, port), these name the primary of `service`;
    `sentinel_options` are those of a connection to them. `nodes` (host, port): those of a cluster, or some of them."""

    options: dict[str, Any] = field(repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)
    nodes: tuple[tuple[str, int], ...] = ()


def read_redis_url(url: str) -> RedisAddress:
    """Raises InvalidRequest, which never quotes the URL."""
    if "#" in url:
        raise _refused("a URL with a fragment (#)", f"one without; {_ENCODED}")
    try:
        scheme, _, rest = url.partition("://")
        authority = re.split("[/?]", rest, maxsplit=1)[0]
        login, _, hosts = authority.rpartition("@")
        is_list = scheme.lower() in (*SENTINEL_SCHEMES, *CLUSTER_SCHEMES)
        # Newer versions of Python refuse a list in which a host is an IPv6 address.
        parts = urlsplit(f"{scheme}://{rest.removeprefix(authority)}" if is_list else url)
        if "@" in login:
            raise _refused("a URL with more than one @", f"{_FORM}; {_ENCODED}")
        if parts.scheme in SENTINEL_SCHEMES:
            return _by_sentinel(parts, login, hosts)
        if parts.scheme in CLUSTER_SCHEMES:
            return _of_a_cluster(parts, login, hosts)
        if parts.scheme == "unix":
            _check_socket(hosts, parts.path)
        else:
            _check_server(hosts, parts)
        return RedisAddress(dict(parse_url(url)))
    except (ValueError, TypeError):  # its message may quote part of the password
        raise _refused("an unreadable URL", f"{_FORM}; {_ENCODED}") from None


def _by_sentinel(parts: SplitResult, login: str, hosts: str) -> RedisAddress:
    sentinels = tuple(_host_and_port(each, _SENTINEL_PORT, _SENTINEL_FORM) for each in hosts.split(","))
    path = re.fullmatch(r"/([A-Za-z0-9._-]+)(/[0-9]+)?", parts.path)
    if path is None:
        raise _refused("a URL whose path is no service of a Sentinel", f"{_SENTINEL_FORM}; {_ENCODED}")
    query = parse_qsl(parts.query)
    server = {name: value for name, value in query if name not in _SENTINEL_LOGIN}
    scheme = parts.scheme.partition("+")[0]
    options: dict[str, Any] = dict(parse_url(f"{scheme}://{login}@host{path[2] or ''}?{urlencode(server)}"))
    del options["host"]
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    logins = {_SENTINEL_LOGIN[name]: value for name, value in query if name in _SENTINEL_LOGIN}
    return RedisAddress(options, sentinels, path[1], {"ssl": scheme == "rediss", **tls, **logins})


def _of_a_cluster(parts: SplitResult, login: str, hosts: str) -> RedisAddress:
    nodes = tuple(_host_and_port(each, _PORT, _CLUSTER_FORM) for each in hosts.split(","))
    scheme = parts.scheme.partition("+")[0]
    options: dict[str, Any] = dict(parse_url(f"{scheme}://{login}@host{parts.path}?{parts.query}"))
    if parts.path not in ("", "/", "/0") or options.pop("db", 0):
        raise _refused("a URL with a database", f"{_CLUSTER_FORM}: a cluster has no other than 0; {_ENCODED}")
    del options["host"]
    is_tls = options.pop("connection_class", None) is not None
    # Without TLS, redis-py's cluster client ignores them.
    if not is_tls and any(name.startswith("ssl_") for name in options):
        raise _refused("a URL with parameters of TLS", f"{_CLUSTER_FORM}, or rediss+cluster:// for TLS")
    if any(name not in ("username", "password") and not name.startswith("ssl_") for name in options):
        raise _refused("a URL with an unknown parameter", f"{_CLUSTER_FORM}, for TLS with ssl_ca_certs and its like")
    if is_tls:
        options["ssl"] = True
    return RedisAddress(options, nodes=nodes)


def _host_and_port(text: str, port: int, form: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise _refused("a URL without a host", f"{form}; {_ENCODED}")
    return parts.hostname, parts.port or port


def _check_server(hosts: str, parts: SplitResult) -> None:
    if "," in hosts:
        raise _refused("a URL with a list of hosts", f"{_CLUSTER_FORM}, or {_SENTINEL_FORM}")
    if not parts.hostname:
        raise _refused("a URL without a host", f"{_FORM}; {_ENCODED}")
    if not re.fullmatch(r"/?|/[0-9]+", parts.path):
        raise _refused("a URL whose path is no database number", f"{_FORM}; {_ENCODED}")


def _check_socket(host: str, path: str) -> None:
    if host or not path.strip("/"):
        raise _refused("a unix:// URL without an absolute path", "unix:///PATH or unix://[USER]:PASSWORD@/PATH")


def _refused(value: str, limit: str) -> InvalidRequest:
    return InvalidRequest("cache_url", value, limit)
