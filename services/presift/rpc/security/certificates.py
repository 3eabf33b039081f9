"""Certificates from PEM files: checked before they are used, and used anew when the files change."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import grpc

from presift.core.errors import PresiftError
from presift.rpc.security.file_watcher import FileWatcher, read_file


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: `cert` (its chain behind it) goes with `key`; `ca` says whom to trust. `names` are the settings of the
    three, for errors. Raises PresiftError for a certificate without a key or the reverse.
    """

    cert: Path | None
    key: Path | None
    ca: Path | None
    names: tuple[str, str, str]

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            missing, given = self.names[:2] if self.cert is None else self.names[1::-1]
            raise PresiftError(f"{missing} is unset; it goes with {given}")

    def watched(self) -> FileWatcher[TlsPems]:
        """What is in them. Raises PresiftError for what cannot be used."""
        return FileWatcher([path for path in (self.cert, self.key, self.ca) if path], partial(_pems, self))


@dataclass(frozen=True, slots=True, repr=False)
class TlsPems:
    """PEM text, checked: `key` is that of `cert`. Never shown."""

    cert: bytes | None
    key: bytes | None
    ca: bytes | None


def server_credentials(pems: FileWatcher[TlsPems]) -> grpc.ServerCredentials:
    """For a server with a certificate; with a `ca`, clients must have one too (mutual TLS).

    gRPC asks at every handshake whether there is something new. Connections that stand are not touched.
    """
    served = pems.current()

    def news() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        current = pems.current()
        if current is served:
            return None
        served = current
        return _configuration(current)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(served),
        news,  # type: ignore[arg-type]  # None is "nothing new", which the stubs do not know
        require_client_authentication=served.ca is not None,
    )


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """The same for a server that is not gRPC's (HTTP/1.1). Raises PresiftError for what cannot be used.

    Every handshake takes the context of the files as they are then. Connections that stand are not touched.
    """
    paths = [path for path in (files.cert, files.key, files.ca) if path]
    contexts = FileWatcher(paths, partial(_context, files))
    first = contexts.current()

    def renew(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = contexts.current()

    first.sni_callback = renew  # called for clients that name no server, too
    return first


def channel_credentials(pems: TlsPems) -> grpc.ChannelCredentials:
    """For a client; without a `ca` the public authorities that gRPC brings are trusted."""
    return grpc.ssl_channel_credentials(pems.ca, pems.key, pems.cert)


def _configuration(pems: TlsPems) -> grpc.ServerCertificateConfiguration:
    if pems.key is None or pems.cert is None:
        raise PresiftError("TLS needs a certificate and its key: tls_cert and tls_key")
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.cert)], pems.ca)


def _pems(files: TlsFiles) -> TlsPems:
    """Raises PresiftError unless all of it can be used: half a renewal looks like a key of another certificate."""
    pems = _read(files)
    _loaded(files, pems)
    return pems


def _context(files: TlsFiles) -> ssl.SSLContext:
    pems = _read(files)
    context = _loaded(files, pems)
    context.set_alpn_protocols(["http/1.1"])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if pems.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session shows no certificate: whose authority was taken away would still come in. Only TLS 1.3 lets
        # that be switched off here.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
    return context


def _loaded(files: TlsFiles, pems: TlsPems) -> ssl.SSLContext:
    """Raises PresiftError unless all of it can be used, and is what is in the files still."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert_name, key_name, ca_name = files.names
    if files.cert is not None:
        try:
            context.load_cert_chain(files.cert, files.key, password=_refuse_password)
        except (ssl.SSLError, ValueError, OSError) as error:
            raise PresiftError(f"{cert_name}, {key_name}: {files.cert} and {files.key}: {_why(error)}") from None
    if pems.ca is not None:
        try:
            context.load_verify_locations(cadata=pems.ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise PresiftError(f"{ca_name}: {files.ca} holds no certificates ({_why(error)})") from None
    if _read(files) != pems:  # what was checked is what is used
        raise PresiftError(f"{cert_name}: {files.cert} changed while it was read")
    return context


def _read(files: TlsFiles) -> TlsPems:
    paths = (files.cert, files.key, files.ca)
    read = (None if path is None else read_file(name, path) for name, path in zip(files.names, paths, strict=True))
    return TlsPems(*read)


def _refuse_password() -> NoReturn:
    """Without it OpenSSL would ask on the terminal."""
    raise ValueError("the key is encrypted; a service needs a plain one")


def _why(error: Exception) -> str:
    """Without OpenSSL's place in its own source."""
    reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
    return reason.replace("_", " ").lower() if reason.isupper() else reason
