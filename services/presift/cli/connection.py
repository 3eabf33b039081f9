"""The connection to an orchestrator: its flags, and the client that they and the environment variables describe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from presift.cli.render.console import print_stderr
from presift.cli.settings import CliSettings
from presift.rpc.security.binding import is_loopback
from presift_client import AsyncClient, Client, TlsOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionFlags:
    """Where the orchestrator is and how to authenticate; flags take precedence over environment variables."""

    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of the orchestrator (environment: PRESIFT_ADDRESS)")
    ] = None
    tls: Annotated[
        bool,
        typer.Option("--tls", help="use TLS; without --ca public authorities are trusted (environment: PRESIFT_TLS)"),
    ] = False
    ca: Annotated[
        Path | None,
        typer.Option(
            help="PEM file: the authority that signed the orchestrator's certificate (environment: PRESIFT_CA)"
        ),
    ] = None
    cert: Annotated[
        Path | None, typer.Option(help="PEM file: your client certificate for mutual TLS (environment: PRESIFT_CERT)")
    ] = None
    key: Annotated[
        Path | None, typer.Option(help="PEM file: the client certificate's key (environment: PRESIFT_KEY)")
    ] = None
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="a file with your API key (environment: PRESIFT_API_KEY_FILE, PRESIFT_API_KEY)"),
    ] = None


def connect(flags: ConnectionFlags, settings: CliSettings, tenant: str | None = None) -> Client:
    """The orchestrator's client. Raises ValueError or OSError for files that cannot be used, never quoting a key."""
    address, options = _address_and_options(flags, settings)
    return Client(address, tenant=tenant, **options)


def connect_async(flags: ConnectionFlags, settings: CliSettings, tenant: str | None = None) -> AsyncClient:
    """As `connect`, for the running event loop."""
    address, options = _address_and_options(flags, settings)
    return AsyncClient(address, tenant=tenant, **options)


def _address_and_options(flags: ConnectionFlags, settings: CliSettings) -> tuple[str, dict[str, Any]]:
    address = flags.address or settings.address
    api_key = _api_key(flags.api_key_file, settings)
    files = TlsOptions(flags.ca or settings.ca, flags.cert or settings.cert, flags.key or settings.key)
    is_tls = flags.tls or settings.tls or files != TlsOptions()
    if api_key is not None and not is_tls and not is_loopback(address):
        print_stderr(f"warning: sending the API key to {address} unencrypted; use --tls or --ca")
    return address, {"tls": files if is_tls else None, "api_key": api_key}


def _api_key(file: Path | None, settings: CliSettings) -> str | None:
    if file is None and settings.api_key is not None:
        return settings.api_key.get_secret_value()
    path = file or settings.api_key_file
    return None if path is None else path.read_text(encoding="utf-8").strip()
