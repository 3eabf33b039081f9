"""The settings of every service. `__main__` reads them once; the rest of the code takes plain arguments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import grpc
from pydantic import AfterValidator, Field, SecretStr
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from presift.core.errors import PresiftError
from presift.rpc.security.caller_interceptor import CallerInterceptor
from presift.rpc.security.certificates import TlsFiles
from presift.rpc.security.file_watcher import read_file
from presift.rpc.security.service_token import Tokens, fixed_tokens, tokens_from_file
from presift.rpc.server.memory_guard import container_limit
from presift.rpc.server.server import ServerOptions
from presift.telemetry.logs import LogFormat
from presift.telemetry.tracing import OtlpEndpoint, Telemetry


def _check_address(text: str) -> str:
    if re.fullmatch(r".+:\d{1,5}", text) is None:
        raise PydanticCustomError("address", "must be HOST:PORT, for example 127.0.0.1:8000")
    return text


Address = Annotated[str, AfterValidator(_check_address)]


class ServiceSettings(BaseSettings):
    """Subclasses set `env_prefix`. Each field is a flag (`--drain-s`) and a variable (`PRESIFT_DRAFT_DRAIN_S`).

    Every secret `x` has a field `x_file`; `secret("x")` reads either.
    """

    model_config = SettingsConfigDict(
        extra="forbid",
        cli_parse_args=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        hide_input_in_errors=True,  # the input may be a secret
    )

    listen: Annotated[Address, Field(description="HOST:PORT; port 0 takes any free port")]
    max_message_mib: Annotated[int, Field(ge=1, le=1024, description="largest gRPC message and HTTP body, MiB")] = 34
    max_calls: Annotated[
        int,
        Field(
            ge=1,
            description="maximum concurrent calls of all methods, a quarter of them for a tenant or a connection; "
            "health checks are still answered",
        ),
    ] = 4096
    max_received_mib: Annotated[
        int,
        Field(
            ge=1,
            description="maximum size of all requests that are being received or answered, MiB, a quarter of it for a"
            " tenant, but at least max_message_mib; further ones are refused",
        ),
    ] = 512
    max_memory_mib: Annotated[
        int | None,
        Field(
            ge=64,
            description="end gRPC requests that are incomplete after 0.1 s while the process uses more than this, MiB"
            " (mapped files excluded); nine tenths of the container's limit if unset",
        ),
    ] = None
    drain_s: Annotated[float, Field(ge=0, description="seconds that running calls get to finish after SIGTERM")] = 30.0
    tls_cert: Annotated[Path | None, Field(description="PEM: certificate and its chain; reloaded when it changes")] = (
        None
    )
    tls_key: Annotated[Path | None, Field(description="PEM: key of tls_cert, unencrypted")] = None
    tls_client_ca: Annotated[
        Path | None, Field(description="PEM: callers need a certificate of this authority (mutual TLS)")
    ] = None
    insecure: Annotated[bool, Field(description="listen beyond this machine without authentication")] = False
    reflection: Annotated[bool, Field(description="offer gRPC server reflection")] = True
    service_token: Annotated[
        SecretStr | None, Field(description="token that the orchestrator sends, and that draft and target require")
    ] = None
    service_token_file: Annotated[
        Path | None,
        Field(description="one token per line, reloaded when it changes; all are accepted, the first is sent"),
    ] = None
    otlp_endpoint: Annotated[str | None, Field(description="OTLP/gRPC endpoint for traces and metrics")] = None
    otlp_tls: Annotated[bool, Field(description="use TLS to the OTLP endpoint")] = False
    otlp_ca: Annotated[
        Path | None, Field(description="PEM: authority of the OTLP endpoint; public authorities if unset")
    ] = None
    metrics_listen: Annotated[
        Address | None,
        Field(description="HOST:PORT of /metrics for Prometheus, without authentication"),
    ] = None
    log_level: Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    log_format: Annotated[LogFormat, Field(description="format of log lines; json includes trace ids")] = LogFormat.TEXT

    def server_options(self) -> ServerOptions:
        """Raises PresiftError for TLS settings that contradict each other."""
        return ServerOptions(
            self.listen,
            self.max_message_mib * 2**20,
            self.drain_s,
            self.max_calls,
            tls=self._tls(),
            reflection=self.reflection,
            insecure=self.insecure,
            max_received_bytes=self.max_received_mib * 2**20,
            max_memory_bytes=container_limit() if self.max_memory_mib is None else self.max_memory_mib * 2**20,
        )

    def secret(self, name: str) -> str:
        """The setting or the content of its file; empty if neither is set. Raises PresiftError, without the secret."""
        given: SecretStr | None = getattr(self, name)
        path: Path | None = getattr(self, f"{name}_file")
        if path is None:
            return "" if given is None else given.get_secret_value()
        if name in self.model_fields_set:
            raise PresiftError(f"{name} and {name}_file are both set; set one of them")
        try:
            return read_file(f"{name}_file", path).decode().strip()
        except UnicodeDecodeError:
            raise PresiftError(f"{name}_file: {path} is not UTF-8") from None

    def tokens(self) -> Tokens | None:
        """The service tokens, if any. Raises PresiftError, without the tokens."""
        token = self.secret("service_token")
        if self.service_token_file is not None:
            return tokens_from_file("service_token_file", self.service_token_file)
        return fixed_tokens("service_token", token) if self.service_token is not None else None

    def telemetry(self) -> Telemetry:
        """Where telemetry is sent. Raises PresiftError for an unreadable authority."""
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
            raise PresiftError("tls_client_ca needs tls_cert and tls_key")
        return None if files.cert is None else files


class InnerSettings(ServiceSettings):
    """The settings of draft and target, which only presift's own services may call."""

    allowed_callers: Annotated[
        str,
        Field(description="comma-separated names that callers' certificates may have; any if unset"),
    ] = ""

    def auth_interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """The interceptors that authenticate callers, if any. Raises PresiftError."""
        names = [name.strip() for name in self.allowed_callers.split(",") if name.strip()]
        if names and self.tls_client_ca is None:
            raise PresiftError("allowed_callers needs tls_client_ca: the names are those of callers' certificates")
        tokens = self.tokens()
        return [CallerInterceptor(tokens, names)] if tokens is not None or names else []
