"""Where a service may listen without knowing its callers."""

import pytest

from presift.core.errors import InvalidRequest
from presift.rpc.security.binding import check_binding
from presift.rpc.server.server import GrpcServer, ServerOptions

LOOPBACK = ["127.0.0.1:1", "127.8.9.10:0", "[::1]:50051", "localhost:50051"]
BEYOND = ["0.0.0.0:1", "[::]:1", "10.0.0.7:1", "draft:1", "localhost.example:1", "127.0.0.1.example:1", "*:1", "0:1"]


@pytest.mark.parametrize("listen", LOOPBACK)
def test_on_this_machine_anybody_may(listen):
    check_binding(listen, has_auth=False, insecure=False)


@pytest.mark.parametrize("listen", BEYOND)
def test_beyond_it_callers_must_be_known(listen):
    with pytest.raises(InvalidRequest, match="--insecure") as refused:
        check_binding(listen, has_auth=False, insecure=False)
    assert refused.value.field == "listen" and listen in refused.value.message
    check_binding(listen, has_auth=True, insecure=False)
    check_binding(listen, has_auth=False, insecure=True)


async def test_a_server_does_not_bind_what_it_may_not():
    with pytest.raises(InvalidRequest, match="--insecure"):
        await GrpcServer(ServerOptions("0.0.0.0:0"), []).start()
    insecure = GrpcServer(ServerOptions("0.0.0.0:0", insecure=True), [])
    assert await insecure.start() > 0
    await insecure.grpc.stop(0)
