"""Certificates made for one test, and a service to guard with them."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trustme

from presift.rpc.security.certificates import TlsFiles
from presift.v1 import target_pb2, target_pb2_grpc

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
NAMES = ("cert", "key", "ca")


@dataclass(frozen=True)
class Pair:
    """PEM files of one holder: its certificate, its key and the authority that it trusts."""

    cert: Path
    key: Path
    ca: Path

    def files(self):
        return TlsFiles(self.cert, self.key, self.ca, NAMES)

    def server_flags(self):
        return [f"--tls-cert={self.cert}", f"--tls-key={self.key}", f"--tls-client-ca={self.ca}"]

    def peer_flags(self):
        return [f"--peer-cert={self.cert}", f"--peer-key={self.key}", f"--peer-ca={self.ca}"]


class Authority:
    """Issues certificates, as PEM files in `folder`."""

    def __init__(self, folder):
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self._ca = trustme.CA()
        self.ca = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca))

    def pair(self, *identities, expired=False, common_name=None, into=None):
        """A certificate for these names, written to folder `into`."""
        expiry = {"not_before": LONG_AGO, "not_after": LONG_AGO.replace(year=2021)} if expired else {}
        issued = self._ca.issue_cert(*identities, common_name=common_name, **expiry)
        folder = self.folder / (into or f"{identities or common_name}-{expired}".replace("/", "_"))
        folder.mkdir(exist_ok=True)
        pair = Pair(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
        pair.ca.write_bytes(self.ca.read_bytes())
        pair.key.write_bytes(issued.private_key_pem.bytes())
        pair.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return pair


class Counting(target_pb2_grpc.TargetServiceServicer):
    """Counts who came in, under which names; a stream goes on while its caller stays."""

    def __init__(self):
        self.came_in, self.names, self.left = 0, set(), 0

    async def GetInfo(self, request, context):
        self.came_in += 1
        self.names |= set(context.peer_identities() or ())
        return target_pb2.TargetServiceGetInfoResponse()

    async def Generate(self, request, context):
        self.came_in += 1
        try:
            while True:
                yield target_pb2.TargetServiceGenerateResponse(delta=target_pb2.TokenDelta(token_ids=[1]))
                await asyncio.sleep(0.01)
        finally:
            self.left += 1

    async def Prefill(self, request, context):
        try:
            await asyncio.Event().wait()
        finally:
            self.left += 1
