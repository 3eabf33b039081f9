"""The metadata and channel options of every call: tenant, API key, TLS."""

import pytest

from presift_client import AsyncClient, Client, TlsOptions
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
    assert "grpc.ssl_target_name_override" not in dict(channel_options(1)) | dict(channel_options(1, TlsOptions()))
    assert dict(channel_options(1, TlsOptions(name_override="n")))["grpc.ssl_target_name_override"] == "n"


def test_a_certificate_without_its_key_is_refused():
    for half in ({"cert": "c"}, {"key": "k"}):
        with pytest.raises(ValueError, match="cert and key must be given together"):
            TlsOptions(**half)


@pytest.mark.parametrize("client", [Client, AsyncClient])
async def test_the_error_names_a_missing_file(client, tmp_path):
    with pytest.raises(OSError, match=r"nowhere\.pem"):
        client(tls=TlsOptions(ca=tmp_path / "nowhere.pem"))
