"""Host headers: a name that a page can make resolve to this machine is refused, what real clients send is not."""

import pytest
from starlette.datastructures import Headers

from presift.core.errors import PermissionDenied
from presift.orchestrator.api.http.hosts import AllowedHosts

LOOPBACK, NETWORK = "127.0.0.1:8000", "0.0.0.0:8000"
REBOUND = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "localhost.", ""]


def refused(listen, *hosts, names=()):
    headers = Headers(raw=[(b"host", host.encode("latin-1")) for host in hosts])
    try:
        AllowedHosts.of(listen, names).check(headers)
    except PermissionDenied as error:
        return str(error)
    return ""


@pytest.mark.parametrize("listen", [LOOPBACK, NETWORK])
@pytest.mark.parametrize("host", ["127.0.0.1:8000", "10.1.2.3", "[::1]:8000", "[fe80::1]", "LocalHost:8000"])
def test_an_address_and_localhost_are_nobodys_page(listen, host):
    """A probe by the pod's address among them."""
    assert refused(listen, host) == ""


@pytest.mark.parametrize("listen", [LOOPBACK, NETWORK])
@pytest.mark.parametrize("host", REBOUND)
def test_a_name_with_a_dot_may_be_a_rebound_one(listen, host):
    assert "http_hosts" in refused(listen, host)
    assert refused(listen, "localhost", host)


def test_a_name_without_a_dot_is_that_of_a_closed_network():
    """Docker's service names. The network of a laptop that listens on loopback is not closed."""
    assert refused(NETWORK, "orchestrator:8000") == "" != refused(LOOPBACK, "orchestrator:8000")


def test_set_names_are_allowed_and_so_is_that_of_the_address():
    names = {"presift.internal"}
    assert refused(LOOPBACK, "Presift.Internal:443", names=names) == ""
    assert refused("box.local:8000", "box.local:8000") == ""
    assert refused(LOOPBACK, "a.presift.internal", names=names)


def test_a_client_of_http_1_0_sends_none():
    assert refused(LOOPBACK) == ""


def test_the_error_quotes_no_more_than_a_name():
    text = refused(LOOPBACK, "a." + "b" * 10_000)
    assert len(text) < 250 and "'a.bbb" in text
