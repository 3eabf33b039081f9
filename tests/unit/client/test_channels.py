"""The metadata and channel options of every call: tenant, API key, TLS."""

import grpc
import pytest

from presift_client import AsyncClient, Client, PresiftError, TlsOptions
from presift_client.channels import channel_options, metadata_of

KEY = "xylophone"


def test_key_and_tenant():
    assert metadata_of(None) == ()
    assert metadata_of("acme", KEY) == (("presift-tenant", "acme"), ("authorization", f"Bearer {KEY}"))


@pytest.mark.parametrize("key", ["", f"{KEY} {KEY}", f"{KEY}\n", f"{KEY}ö"])
@pytest.mark.parametrize("client", [Client, AsyncClient])
async def test_an_invalid_key_is_refused_and_not_quoted(client, key):
    with pytest.raises(ValueError, match="api_key") as refused:
        client(api_key=key)
    assert KEY not in str(refused.value)


def test_the_name_in_the_certificate_can_be_overridden():
    plain, encrypted = channel_options("a:1", 1), channel_options("a:1", 1, TlsOptions())
    assert "grpc.ssl_target_name_override" not in dict(plain) | dict(encrypted)
    assert dict(channel_options("a:1", 1, TlsOptions(name_override="n")))["grpc.ssl_target_name_override"] == "n"


@pytest.mark.parametrize(
    ("address", "is_direct"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("dns:///localhost:1", True),
        ("dns://10.0.0.1/localhost:1", True),
        ("presift.example.com:443", False),
        ("10.0.0.1:50051", False),
        ("localhost.example.com:1", False),
        ("[2001:db8::1]:1", False),
    ],
)
def test_the_environments_proxy_is_not_used_for_this_machine(address, is_direct):
    assert (dict(channel_options(address, 1)).get("grpc.enable_http_proxy") == 0) is is_direct


async def test_a_call_on_this_machine_does_not_use_the_proxy(monkeypatch):
    for each in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing listens there
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(PresiftError) as told:
            await client.info()
    assert "UNIMPLEMENTED" in str(told.value) or "Method not found" in str(told.value)
    await server.stop(0)


def test_a_certificate_without_its_key_is_refused():
    for half in ({"cert": "c"}, {"key": "k"}):
        with pytest.raises(ValueError, match="cert and key must be given together"):
            TlsOptions(**half)


@pytest.mark.parametrize("client", [Client, AsyncClient])
async def test_the_error_names_a_missing_file(client, tmp_path):
    with pytest.raises(OSError, match=r"nowhere\.pem"):
        client(tls=TlsOptions(ca=tmp_path / "nowhere.pem"))
