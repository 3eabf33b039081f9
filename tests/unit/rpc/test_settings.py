"""Settings that every service has: what goes together, and secrets that come from files and are never shown."""

import pytest
from pydantic import SecretStr, ValidationError

from presift.core.errors import PresiftError
from presift.draft.settings import DraftSettings
from presift.orchestrator.app import model_service_peer
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.target.settings import TargetSettings
from presift.telemetry.logs import LogFormat
from presift.telemetry.tracing import OtlpEndpoint, Telemetry

SETTINGS = [DraftSettings, OrchestratorSettings, TargetSettings]
SECRET = "xylophone-xylophone"


def settings(kind, *flags):
    return kind(_cli_parse_args=[*flags, *([] if kind is OrchestratorSettings else ["--model=m"])])


def secrets(kind):
    return [name for name, field in kind.model_fields.items() if "SecretStr" in str(field.annotation)]


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("flag", ["--listen", "--metrics-listen"])
@pytest.mark.parametrize("address", ["8001", "localhost", "localhost:", ":1", "localhost:123456"])
def test_an_address_has_a_host_and_a_port(kind, flag, address):
    with pytest.raises(ValidationError, match="must be HOST:PORT"):
        settings(kind, f"{flag}={address}")
    assert settings(kind, f"{flag}=[::1]:0")


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_secret_has_a_file(kind, tmp_path):
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    assert "service_token" in secrets(kind)
    for name in secrets(kind):
        assert isinstance(getattr(settings(kind), name), SecretStr | None)
        flag = f"--{name.replace('_', '-')}"
        assert settings(kind, f"{flag}-file={path}").secret(name) == SECRET
        assert settings(kind, f"{flag}={SECRET}").secret(name) == SECRET
        with pytest.raises(PresiftError, match=f"{name} and {name}_file are both set") as refused:
            settings(kind, f"{flag}={SECRET}", f"{flag}-file={path}").secret(name)
        assert SECRET not in refused.value.message
        with pytest.raises(PresiftError, match=f"{name}_file: cannot read .*nowhere"):
            settings(kind, f"{flag}-file={path.with_name('nowhere')}").secret(name)


@pytest.mark.parametrize("kind", SETTINGS)
def test_no_secret_is_shown(kind, capsys, monkeypatch):
    given = settings(kind, *(f"--{name.replace('_', '-')}={SECRET}" for name in secrets(kind)))
    assert SECRET not in f"{given!r}{given}{given.model_dump()}"
    for name in secrets(kind):
        monkeypatch.setenv(f"{kind.model_config['env_prefix']}{name.upper()}", SECRET)
    with pytest.raises(SystemExit):
        settings(kind, "--help")
    assert SECRET not in capsys.readouterr().out


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_invalid_setting_is_reported_without_its_value(kind):
    with pytest.raises(ValueError, match="log_level") as refused:
        settings(kind, f"--log-level={SECRET}")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tls-cert=c"], "tls_key is unset; tls_cert needs it"),
        (["--tls-key=k"], "tls_cert is unset; tls_key needs it"),
        (["--tls-client-ca=a"], "tls_client_ca needs tls_cert and tls_key"),
    ],
)
@pytest.mark.parametrize("kind", SETTINGS)
def test_what_does_not_go_together(kind, flags, words):
    with pytest.raises(PresiftError, match=words):
        settings(kind, *flags).server_options()


def test_names_go_with_an_authority():
    with pytest.raises(PresiftError, match="allowed_callers needs tls_client_ca"):
        settings(DraftSettings, "--allowed-callers=a,b").auth_interceptors()
    assert settings(DraftSettings).auth_interceptors() == []
    assert settings(DraftSettings, "--tls-client-ca=a", "--allowed-callers= a , b").auth_interceptors()
    assert settings(TargetSettings, f"--service-token={SECRET}").auth_interceptors()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--peer-cert=c", "--peer-key=k"], "need peer_ca"),
        (["--peer-name-override=n"], "need peer_ca"),
        (["--peer-ca=a", "--peer-cert=c"], "peer_key is unset; peer_cert needs it"),
        (["--service-token=short"], "at least 16"),
    ],
)
def test_what_does_not_go_together_on_the_way_to_peers(flags, words):
    with pytest.raises(PresiftError, match=words):
        model_service_peer(settings(OrchestratorSettings, *flags))


def test_the_authority_of_the_cache_goes_into_its_url():
    assert settings(OrchestratorSettings).resolved_cache_url() == "memory://"
    given = ["--cache-ca=/a b/ca.pem"]
    with_query = settings(OrchestratorSettings, "--cache-url=rediss://:p@host/1?timeout=1", *given)
    assert with_query.resolved_cache_url() == "rediss://:p@host/1?timeout=1&ssl_ca_certs=%2Fa+b%2Fca.pem"
    without = settings(OrchestratorSettings, "--cache-url=rediss://host", *given)
    assert without.resolved_cache_url() == "rediss://host?ssl_ca_certs=%2Fa+b%2Fca.pem"
    sentinels = settings(OrchestratorSettings, "--cache-url=rediss+sentinel://one,two/main", *given)
    assert sentinels.resolved_cache_url() == "rediss+sentinel://one,two/main?ssl_ca_certs=%2Fa+b%2Fca.pem"
    cluster = settings(OrchestratorSettings, "--cache-url=rediss+cluster://one,two", *given)
    assert cluster.resolved_cache_url() == "rediss+cluster://one,two?ssl_ca_certs=%2Fa+b%2Fca.pem"
    with pytest.raises(PresiftError, match="cache_ca needs a rediss://, rediss\\+sentinel:// or rediss\\+cluster:// "):
        settings(OrchestratorSettings, *given).resolved_cache_url()


def test_telemetry_uses_tls_if_set(tmp_path):
    assert settings(DraftSettings).telemetry() == Telemetry()
    plain = settings(DraftSettings, "--otlp-endpoint=collector:4317").telemetry().otlp
    assert plain.arguments() == {"endpoint": "collector:4317", "insecure": True}
    ca = tmp_path / "ca.pem"
    ca.write_text("pem")
    for flags in (["--otlp-tls"], [f"--otlp-ca={ca}"]):
        arguments = settings(DraftSettings, "--otlp-endpoint=collector:4317", *flags).telemetry().otlp.arguments()
        assert arguments["insecure"] is False and arguments["credentials"] is not None


def test_what_is_told_and_how():
    flags = ["--metrics-listen=127.0.0.1:9464", "--log-format=json", "--log-level=ERROR"]
    assert settings(DraftSettings, *flags).telemetry() == Telemetry(None, "127.0.0.1:9464", LogFormat.JSON)
    for flag in ("--metrics-listen=9464", "--log-format=xml"):
        with pytest.raises(ValidationError):
            settings(DraftSettings, flag)


def test_whose_trace_a_line_is_of_is_known_where_lines_say_it():
    assert not Telemetry().has_traces
    assert Telemetry(OtlpEndpoint("collector:4317")).has_traces and Telemetry(log_format=LogFormat.JSON).has_traces
