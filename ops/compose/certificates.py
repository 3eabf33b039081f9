"""Certificates to try mutual TLS on a compose stack. Its service `certificates` runs `certificates.py FOLDER`:

    make            create an authority, and certificates of ROLES that are missing or expire within 30 days
    export          write FOLDER/caller, for an application outside the stack, as a tar to stdout

FOLDER/ROLE, a separate volume for each role, gets ca.pem, cert.pem and key.pem. The authority's key stays in
FOLDER/authority, which no service mounts. In production use your own authority: the services only need these three
files, and load them again when they change.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Role -> its names in DNS. Draft and target accept clients named `orchestrator`.
ROLES = {
    "cache": ["cache"],
    "draft": ["draft"],
    "target": ["target"],
    "orchestrator": ["orchestrator", "localhost", "127.0.0.1", "::1"],
    "caller": ["caller"],
}
_AUTHORITY_DAYS, _DAYS, _RENEWED_BEFORE_DAYS = 3650, 365, 30
_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0. Raises OSError if FOLDER cannot be written."""
    parser = argparse.ArgumentParser(prog="certificates", description="Certificates to try mutual TLS.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("command", choices=["make", "export"])
    options = parser.parse_args(arguments)
    (make if options.command == "make" else export)(options.folder)
    return 0


def make(folder: Path) -> None:
    """Certificates that are valid for longer than 30 days stay."""
    ca, key = _authority(folder / "authority")
    for role, names in ROLES.items():
        if not _is_good(folder / role / "cert.pem", ca):
            _issue(folder / role, names, ca, key)
            print(f"{role}: certificate for {', '.join(names)}, valid for {_DAYS} days")
    print(f"certificates are ready in {folder}")


def export(folder: Path) -> None:
    """Write a tar with the caller's three files to stdout."""
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for name in ("ca.pem", "cert.pem", "key.pem"):
            archive.add(folder / "caller" / name, name)


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    cert_file, key_file = folder / "ca.pem", folder / "key.pem"
    if not cert_file.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "presift development authority")])
        cert = _builder(name, name, key.public_key(), _AUTHORITY_DAYS)
        cert = cert.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        cert = cert.add_extension(_key_usage(signs_certificates=True), critical=True)
        _write(key_file, _pem(key))
        _write(cert_file, cert.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(cert_file.read_bytes()), key


def _issue(folder: Path, names: list[str], ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    cert = _builder(subject, ca.subject, key.public_key(), _DAYS)
    cert = cert.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
    cert = cert.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    cert = cert.add_extension(_key_usage(signs_certificates=False), critical=True)
    cert = cert.add_extension(x509.ExtendedKeyUsage(_USAGES), critical=False)
    of_authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    cert = cert.add_extension(of_authority, critical=False)
    _write(folder / "ca.pem", ca.public_bytes(serialization.Encoding.PEM))
    _write(folder / "key.pem", _pem(key))
    _write(folder / "cert.pem", cert.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    # The clocks of machines differ slightly.
    builder = builder.not_valid_before(now - timedelta(minutes=5)).not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    signs = signs_certificates
    return x509.KeyUsage(not signs, False, False, False, False, signs, signs, False, False)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _is_good(file: Path, ca: x509.Certificate) -> bool:
    """Whether it is a certificate of this authority that does not expire soon."""
    if not file.exists():
        return False
    cert = x509.load_pem_x509_certificate(file.read_bytes())
    try:
        cert.verify_directly_issued_by(ca)
    except Exception:  # any failure means another authority
        return False
    return cert.not_valid_after_utc > datetime.now(UTC) + timedelta(days=_RENEWED_BEFORE_DAYS)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def _write(path: Path, content: bytes) -> None:
    """Write atomically, readable by this user only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
