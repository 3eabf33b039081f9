"""How commands reach an orchestrator: flags first, then variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from presift.cli.render.console import say
from presift.cli.settings import CliSettings
from presift.rpc.security.binding import is_loopback
from presift_client import Client, TlsOptions

Address = Annotated[str | None, typer.Option(help="orchestrator, HOST:PORT (or PRESIFT_ADDRESS)")]
Tls = Annotated[bool, typer.Option("--tls", help="by TLS; trusts the public authorities without --ca (or PRESIFT_TLS)")]
Ca = Annotated[Path | None, typer.Option(help="PEM: its authority, reached by TLS (or PRESIFT_CA)")]
Cert = Annotated[Path | None, typer.Option(help="PEM: our certificate, where it asks (or PRESIFT_CERT)")]
Key = Annotated[Path | None, typer.Option(help="PEM: the certificate's key (or PRESIFT_KEY)")]
ApiKeyFile = Annotated[
    Path | None, typer.Option(help="a file with our API key (or PRESIFT_API_KEY_FILE, PRESIFT_API_KEY)")
]


def connect(
    address: str | None,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    api_key_file: Path | None,
    *,
    tls: bool = False,
    tenant: str | None = None,
) -> Client:
    """The orchestrator's client. Raises ValueError or OSError for files that do not serve; a key is never quoted."""
    settings = CliSettings()
    at, api_key = address or settings.address, _api_key(api_key_file, settings)
    files = TlsOptions(ca or settings.ca, cert or settings.cert, key or settings.key)
    by_tls = tls or settings.tls or files != TlsOptions()
    if api_key is not None and not by_tls and not is_loopback(at):
        say(f"the API key goes to {at} without TLS: the network can read it (--tls, or --ca)")
    return Client(at, tls=files if by_tls else None, api_key=api_key, tenant=tenant)


def _api_key(file: Path | None, settings: CliSettings) -> str | None:
    if file is None and settings.api_key is not None:
        return settings.api_key.get_secret_value()
    path = file or settings.api_key_file
    return None if path is None else path.read_text(encoding="utf-8").strip()
