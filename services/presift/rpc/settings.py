"""The settings that every service has. Read once, in `__main__`; the rest of the code takes plain arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import grpc
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from presift.core.errors import PresiftError
from presift.rpc.security.caller_interceptor import CallerInterceptor
from presift.rpc.security.certificates import TlsFiles
from presift.rpc.security.file_watcher import read_file
from presift.rpc.security.service_token import Tokens, fixed_tokens, tokens_of
from presift.rpc.server.server import ServerOptions
from presift.telemetry.logs import LogFormat
from presift.telemetry.tracing import OtlpEndpoint, Telemetry


class ServiceSettings(BaseSettings):
    """Subclasses set `env_prefix`; each field is a flag (`--drain-s`) and a variable (`PRESIFT_DRAFT_DRAIN_S`).

    Every secret `x` has an `x_file`, and is read by `secret("x")`.
    """

    model_config = SettingsConfigDict(
        extra="forbid",
        cli_parse_args=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        hide_input_in_errors=True,  # it may be a secret
    )

    listen: Annotated[str, Field(pattern=r"^.+:\d{1,5}$", description="HOST:PORT; port 0 takes any free one")]
    max_message_mib: Annotated[int, Field(ge=1, le=1024, description="largest gRPC message, MiB")] = 64
    max_calls: Annotated[int, Field(ge=1, description="calls at once, whatever they do; health is answered still")] = (
        4096
    )
    drain_s: Annotated[float, Field(ge=0, description="seconds that running calls get after SIGTERM")] = 30.0
    tls_cert: Annotated[Path | None, Field(description="PEM: our certificate and its chain; read again on change")] = (
        None
    )
    tls_key: Annotated[Path | None, Field(description="PEM: its key, not encrypted")] = None
    tls_client_ca: Annotated[
        Path | None, Field(description="PEM: callers must have a certificate of this authority (mutual TLS)")
    ] = None
    insecure: Annotated[bool, Field(description="listen beyond this machine although anybody could call")] = False
    reflection: Annotated[bool, Field(description="tell callers the protocol (gRPC server reflection)")] = True
    service_token: Annotated[
        SecretStr | None, Field(description="draft and target ask for it, the orchestrator shows it there")
    ] = None
    service_token_file: Annotated[
        Path | None, Field(description="one a line, read again on change: all are accepted, the first is shown")
    ] = None
    otlp_endpoint: Annotated[str | None, Field(description="OTLP/gRPC endpoint for traces and metrics")] = None
    otlp_tls: Annotated[bool, Field(description="reach that endpoint by TLS")] = False
    otlp_ca: Annotated[Path | None, Field(description="PEM: its authority; public ones if unset")] = None
    metrics_listen: Annotated[
        str | None,
        Field(pattern=r"^.+:\d{1,5}$", description="HOST:PORT of /metrics for Prometheus, open to all who reach it"),
    ] = None
    log_level: Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    log_format: Annotated[LogFormat, Field(description="of log lines; JSON has trace ids")] = LogFormat.TEXT

    def server_options(self) -> ServerOptions:
        """Raises PresiftError for TLS settings that do not go together."""
        return ServerOptions(
            self.listen,
            self.max_message_mib * 2**20,
            self.drain_s,
            self.max_calls,
            tls=self._tls(),
            reflection=self.reflection,
            insecure=self.insecure,
        )

    def secret(self, name: str) -> str:
        """The secret setting, or what is in its file; empty where neither is set. Raises PresiftError, quoting none."""
        given: SecretStr | None = getattr(self, name)
        path: Path | None = getattr(self, f"{name}_file")
        if path is None:
            return "" if given is None else given.get_secret_value()
        if name in self.model_fields_set:
            raise PresiftError(f"{name} and {name}_file are both set; one is enough")
        try:
            return read_file(f"{name}_file", path).decode().strip()
        except UnicodeDecodeError:
            raise PresiftError(f"{name}_file: {path} is not UTF-8") from None

    def tokens(self) -> Tokens | None:
        """The service tokens. Raises PresiftError, quoting none."""
        token = self.secret("service_token")
        if self.service_token_file is not None:
            return tokens_of("service_token_file", self.service_token_file)
        return fixed_tokens("service_token", token) if self.service_token is not None else None

    def telemetry(self) -> Telemetry:
        """What the service tells of itself. Raises PresiftError for an authority that cannot be read."""
        return Telemetry(self._otlp(), self.metrics_listen, self.log_format)

    def _otlp(self) -> OtlpEndpoint | None:
        if self.otlp_endpoint is None:
            return None
        authority = None if self.otlp_ca is None else read_file("otlp_ca", self.otlp_ca)
        return OtlpEndpoint(self.otlp_endpoint, self.otlp_tls or authority is not None, authority)

    def _tls(self) -> TlsFiles | None:
        names = ("tls_cert", "tls_key", "tls_client_ca")
        files = TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca, names)
        if files.cert is None and files.ca is not None:
            raise PresiftError("tls_client_ca goes with tls_cert and tls_key")
        return None if files.cert is None else files


class InnerSettings(ServiceSettings):
    """Those of draft and target, whom only presift's own services may call."""

    allowed_callers: Annotated[
        str,
        Field(description="names that callers' certificates may have, comma between; any if unset"),
    ] = ""

    def guards(self) -> list[grpc.aio.ServerInterceptor]:
        """What refuses other callers, if anything does. Raises PresiftError."""
        names = [name.strip() for name in self.allowed_callers.split(",") if name.strip()]
        if names and self.tls_client_ca is None:
            raise PresiftError("allowed_callers goes with tls_client_ca: names are those of callers' certificates")
        tokens = self.tokens()
        return [CallerInterceptor(tokens, names)] if tokens is not None or names else []
