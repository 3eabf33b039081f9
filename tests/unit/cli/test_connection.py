"""From flags and environment variables to a client."""

import pytest

from presift.cli import connection
from presift.cli.connection import ConnectionFlags
from presift.cli.settings import CliSettings
from presift_client import TlsOptions


@pytest.fixture
def connected(monkeypatch, tmp_path):
    """Flags -> the address and options that the client was made with."""
    made = {}
    monkeypatch.setattr(connection, "Client", lambda address, **options: made.update(options, address=address))
    key_file = tmp_path / "key"
    key_file.write_text("psk_very_secret\n")

    def connected(address, *, has_key=True, **flags):
        flags = ConnectionFlags(address=address, api_key_file=key_file if has_key else None, **flags)
        connection.connect(flags, CliSettings())
        return made

    return connected


def test_tls_with_public_authorities_needs_no_file(connected):
    assert connected("presift.example:443", tls=True)["tls"] == TlsOptions()


def test_both_clients_get_the_same_options(connected, monkeypatch, tmp_path):
    wanted, made = dict(connected("presift.example:443", tls=True)), {}
    monkeypatch.setattr(connection, "AsyncClient", lambda address, **options: made.update(options, address=address))
    flags = ConnectionFlags(address="presift.example:443", tls=True, api_key_file=tmp_path / "key")
    connection.connect_async(flags, CliSettings())
    assert made == wanted


def test_an_authority_turns_tls_on(connected, tmp_path):
    assert connected("presift.example:443", ca=tmp_path / "ca.pem")["tls"] == TlsOptions(tmp_path / "ca.pem")


def test_a_variable_turns_tls_on(connected, monkeypatch):
    monkeypatch.setenv("PRESIFT_TLS", "true")
    assert connected("presift.example:443")["tls"] == TlsOptions()


def test_a_key_sent_without_tls_is_warned_about(connected, capsys):
    made = connected("10.1.2.3:50051")
    printed = capsys.readouterr().err
    assert "10.1.2.3:50051 unencrypted" in printed and "psk_" not in printed
    assert (made["tls"], made["api_key"]) == (None, "psk_very_secret")


@pytest.mark.parametrize(
    ("address", "options"), [("127.0.0.1:50051", {}), ("a:1", {"tls": True}), ("a:1", {"has_key": False})]
)
def test_no_warning_if_the_network_cannot_read_the_key(connected, capsys, address, options):
    connected(address, **options)
    assert capsys.readouterr().err == ""
