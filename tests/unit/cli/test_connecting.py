"""How commands reach an orchestrator."""

import pytest

from presift.cli import connecting
from presift_client import TlsOptions


@pytest.fixture
def reached(monkeypatch, tmp_path):
    """flags -> with what the client was made."""
    made = {}
    monkeypatch.setattr(connecting, "Client", lambda address, **options: made.update(options, address=address))
    key_file = tmp_path / "key"
    key_file.write_text("psk_very_secret\n")

    def reached(address, *, tls=False, ca=None, key=True):
        connecting.connect(address, ca, None, None, key_file if key else None, tls=tls)
        return made

    return reached


def test_public_authorities_need_no_file(reached):
    assert reached("presift.example:443", tls=True)["tls"] == TlsOptions()


def test_an_authority_is_tls(reached, tmp_path):
    assert reached("presift.example:443", ca=tmp_path / "ca.pem")["tls"] == TlsOptions(tmp_path / "ca.pem")


def test_a_variable_says_tls(reached, monkeypatch):
    monkeypatch.setenv("PRESIFT_TLS", "true")
    assert reached("presift.example:443")["tls"] == TlsOptions()


def test_a_key_that_the_network_can_read_is_told(reached, capsys):
    made = reached("10.1.2.3:50051")
    told = capsys.readouterr().err
    assert "10.1.2.3:50051 without TLS" in told and "psk_" not in told
    assert (made["tls"], made["api_key"]) == (None, "psk_very_secret")


@pytest.mark.parametrize(
    ("address", "options"), [("127.0.0.1:50051", {}), ("a:1", {"tls": True}), ("a:1", {"key": False})]
)
def test_nothing_is_told_where_nobody_can_read_it(reached, capsys, address, options):
    reached(address, **options)
    assert capsys.readouterr().err == ""
