"""TLS certificates from PEM files: checked before use, and reloaded when the files change."""

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
    """PEM files: `cert` (with its chain) and its `key`; `ca` is the authority to trust.

    `names` are the settings of the three files, for error messages. Raises PresiftError for a certificate without a
    key or the reverse.
    """

    cert: Path | None
    key: Path | None
    ca: Path | None
    names: tuple[str, str, str]

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            missing, given = self.names[:2] if self.cert is None else self.names[1::-1]
            raise PresiftError(f"{missing} is unset; {given} needs it")

    def watched(self, every_s: float = 0.0) -> FileWatcher[TlsPems]:
        """A watcher of their content, which looks at them once in `every_s` seconds at most. Raises PresiftError if the
        files are unusable."""
        return FileWatcher([path for path in (self.cert, self.key, self.ca) if path], partial(_pems, self), every_s)


@dataclass(frozen=True, slots=True, repr=False)
class TlsPems:
    """Checked PEM text: `key` belongs to `cert`. Never logged."""

    cert: bytes | None
    key: bytes | None
    ca: bytes | None


def server_credentials(pems: FileWatcher[TlsPems]) -> grpc.ServerCredentials:
    """Credentials of a server; with a `ca`, clients need a certificate too (mutual TLS).

    gRPC asks for new certificates at every handshake. Open connections are not affected.
    """
    served = pems.current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        current = pems.current()
        if current is served:
            return None
        served = current
        return _configuration(current)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(served),
        changed,  # type: ignore[arg-type]  # None means no change; the stubs do not know that
        require_client_authentication=served.ca is not None,
    )


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """The same for an HTTP/1.1 server. Raises PresiftError if the files are unusable.

    Every handshake uses the current files. Open connections are not affected.
    """
    paths = [path for path in (files.cert, files.key, files.ca) if path]
    contexts = FileWatcher(paths, partial(_context, files))
    first = contexts.current()

    def renew(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = contexts.current()

    first.sni_callback = renew  # also called for clients that send no server name
    return first


def channel_credentials(pems: TlsPems) -> grpc.ChannelCredentials:
    """Credentials of a client; without a `ca` it trusts gRPC's list of public authorities."""
    return grpc.ssl_channel_credentials(pems.ca, pems.key, pems.cert)


def _configuration(pems: TlsPems) -> grpc.ServerCertificateConfiguration:
    if pems.key is None or pems.cert is None:
        raise PresiftError("TLS needs a certificate and its key: set tls_cert and tls_key")
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.cert)], pems.ca)


def _pems(files: TlsFiles) -> TlsPems:
    """Raises PresiftError if any file is unusable. A half-finished renewal looks like a key of another certificate."""
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
        # A resumed session sends no certificate, so a client whose authority was removed could still connect. Python
        # can switch resumption off for TLS 1.3 only.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
    return context


def _loaded(files: TlsFiles, pems: TlsPems) -> ssl.SSLContext:
    """Raises PresiftError if any file is unusable, or has changed since `pems` was read."""
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
            raise PresiftError(f"{ca_name}: {files.ca} contains no certificates ({_why(error)})") from None
    if _read(files) != pems:  # so that the checked content is what is used
        raise PresiftError(f"{cert_name}: {files.cert} changed while presift read it")
    return context


def _read(files: TlsFiles) -> TlsPems:
    paths = (files.cert, files.key, files.ca)
    read = (None if path is None else read_file(name, path) for name, path in zip(files.names, paths, strict=True))
    return TlsPems(*read)


def _refuse_password() -> NoReturn:
    """Without this callback OpenSSL would ask on the terminal."""
    raise ValueError("the key is encrypted; use an unencrypted key")


def _why(error: Exception) -> str:
    """The error's text, without the location in OpenSSL's source."""
    reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
    return reason.replace("_", " ").lower() if reason.isupper() else reason
