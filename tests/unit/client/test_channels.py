"""What goes with every call of a client: tenant and key, and whom it trusts."""

import pytest

from presift_client import AsyncClient, Client, TlsOptions
from presift_client.channels import metadata_of, options

KEY = "xylophone"


def test_key_and_tenant():
    assert metadata_of(None) == ()
    assert metadata_of("acme", KEY) == (("presift-tenant", "acme"), ("authorization", f"Bearer {KEY}"))


@pytest.mark.parametrize("key", ["", f"{KEY} {KEY}", f"{KEY}\n", f"{KEY}ö"])
@pytest.mark.parametrize("client", [Client, AsyncClient])
async def test_what_is_no_key_is_refused_without_quoting_it(client, key):
    with pytest.raises(ValueError, match="api_key") as refused:
        client(api_key=key)
    assert KEY not in str(refused.value)


def test_a_name_can_be_overridden():
    assert "grpc.ssl_target_name_override" not in dict(options(1)) | dict(options(1, TlsOptions()))
    assert dict(options(1, TlsOptions(name_override="n")))["grpc.ssl_target_name_override"] == "n"


def test_a_certificate_goes_with_its_key():
    for half in ({"cert": "c"}, {"key": "k"}):
        with pytest.raises(ValueError, match="cert and key go together"):
            TlsOptions(**half)


@pytest.mark.parametrize("client", [Client, AsyncClient])
async def test_a_file_that_is_not_there_is_named(client, tmp_path):
    with pytest.raises(OSError, match=r"nowhere\.pem"):
        client(tls=TlsOptions(ca=tmp_path / "nowhere.pem"))
