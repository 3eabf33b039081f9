"""Which Host headers are answered where callers need neither a key nor a token.

A web page can make its own host name resolve to this machine (DNS rebinding) and then read every answer: to the browser
it is the same origin. The Host header still has the page's name. An IP address cannot be rebound.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from starlette.datastructures import Headers

from presift.core.errors import PermissionDenied
from presift.rpc.security.binding import is_loopback

# Characters of a refused name that the error quotes.
_QUOTED = 64


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """`names` in lower case. `dotless`: names without a dot are allowed too. IP addresses and localhost always are."""

    names: frozenset[str]
    dotless: bool = False

    @classmethod
    def of(cls, listen: str, names: Collection[str]) -> Self:
        """For a server at HOST:PORT: its host and `names`.

        Names without a dot are those of a closed network, such as a Docker service's: the internet has none, but the
        network that a laptop is in may. So they are allowed only where that network may call anyway.
        """
        return cls(frozenset({_name(listen), *names}), dotless=not is_loopback(listen))

    def check(self, headers: Headers) -> None:
        """Raise PermissionDenied for another name. Every browser sends a Host header, so none is no page's."""
        for host in headers.getlist("host"):
            name = _name(host)
            if not self._allows(name):
                raise PermissionDenied(
                    f"host is {name[:_QUOTED]!r}; without API keys or tokens it must be an IP address, localhost, or a"
                    " name in http_hosts"
                )

    def _allows(self, name: str) -> bool:
        if name in self.names or name == "localhost" or (self.dotless and name and "." not in name):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name(host: str) -> str:
    """The host of HOST:PORT, in lower case and without brackets; the port may be missing."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]
