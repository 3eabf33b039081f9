"""Refuses to listen beyond loopback without authentication."""

from __future__ import annotations

import ipaddress

from presift.core.errors import InvalidRequest


def check_binding(listen: str, has_auth: bool, insecure: bool, setting: str = "listen") -> None:
    """Raise InvalidRequest, naming `setting`, if anyone beyond this machine could call HOST:PORT unauthenticated.

    `has_auth`: callers need a certificate, token or key. `insecure`: the operator allows unauthenticated callers.
    """
    if has_auth or insecure or is_loopback(listen):
        return
    raise InvalidRequest(
        setting,
        listen,
        "a loopback address, unless callers are authenticated or --insecure is set",
        f"{setting} is {listen}, open to unauthenticated callers; use a loopback address, or authenticate callers "
        "(--tls-client-ca with --tls-cert and --tls-key, or a token or keys), or set --insecure",
    )


def is_loopback(listen: str) -> bool:
    """Whether only this machine can reach HOST:PORT. False for every name except `localhost`."""
    host = listen.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
