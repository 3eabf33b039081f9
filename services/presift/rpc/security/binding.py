"""Where a service may listen: without knowing its callers, on this machine alone."""

from __future__ import annotations

import ipaddress

from presift.core.errors import InvalidRequest


def check_binding(listen: str, has_auth: bool, insecure: bool, setting: str = "listen") -> None:
    """Raise InvalidRequest, naming the settings, for HOST:PORT beyond loopback where anybody could call. `setting` is
    the one that says HOST:PORT.

    `has_auth`: callers must show a certificate, token or key. `insecure`: the operator said that anybody may.
    """
    if has_auth or insecure or is_loopback(listen):
        return
    raise InvalidRequest(
        setting,
        listen,
        "a loopback address, unless callers are known or --insecure is said",
        f"{setting} is {listen}, where anybody could call; it must be a loopback address, unless callers are known "
        "(--tls-client-ca with --tls-cert and --tls-key, or a token or keys) or --insecure is said",
    )


def is_loopback(listen: str) -> bool:
    """Whether only this machine can reach HOST:PORT. A name that is not `localhost` may be anything: False."""
    host = listen.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
