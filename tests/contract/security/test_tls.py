"""Mutual TLS on a hop: who gets in, who does not, and that new certificates are used without a restart."""

import asyncio
import logging
import os
import socket
import ssl

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from presift.core.errors import PresiftError, TargetUnavailable
from presift.orchestrator.backends.services import target_pool
from presift.rpc.client import channel as channel_module
from presift.rpc.client.channel import open_channel
from presift.rpc.security import file_watcher
from presift.rpc.security.certificates import TlsFiles
from presift.rpc.security.peer import Peer
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.v1 import target_pb2, target_pb2_grpc

from ..fakes.authority import NAMES, Authority, Counting, Pair

INFO, GENERATE = target_pb2.TargetServiceGetInfoRequest(), target_pb2.TargetServiceGenerateRequest()
HOST = "127.0.0.1"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ours")


@pytest.fixture
def stranger(tmp_path):
    return Authority(tmp_path / "theirs")


class Served:
    """A server with certificates, and channels to it."""

    def __init__(self, tls):
        self.servicer = Counting()
        self.server = GrpcServer(ServerOptions(f"{HOST}:0", tls=tls), ["presift.v1.TargetService"])
        target_pb2_grpc.add_TargetServiceServicer_to_server(self.servicer, self.server.grpc)
        self.channels = []

    async def start(self):
        self.port = await self.server.start()
        return self

    def stub(self, peer):
        self.channels.append(open_channel(f"{HOST}:{self.port}", peer=peer))
        return target_pb2_grpc.TargetServiceStub(self.channels[-1])

    async def stop(self):
        for channel in self.channels:
            await channel.close()
        await self.server.grpc.stop(0)


@pytest.fixture
async def serve():
    running = []

    async def serve(pair):
        tls = pair.files() if isinstance(pair, Pair) else pair
        running.append(await Served(tls).start())
        return running[-1]

    yield serve
    for served in running:
        await served.stop()


async def code_of(call):
    try:
        await call
    except grpc.aio.AioRpcError as failure:
        return failure.code().name
    return "OK"


async def test_one_of_ours_gets_in(serve, authority):
    served = await serve(authority.pair(HOST))
    stub = served.stub(Peer(authority.pair("orchestrator").files()))
    assert await code_of(stub.GetInfo(INFO)) == "OK" and served.servicer.came_in == 1


def strangers(authority, stranger):
    """name -> a caller's certificates that do not do."""
    ours, theirs = authority.pair("orchestrator"), stranger.pair("orchestrator")
    return {
        "plain": None,
        "no certificate": TlsFiles(None, None, ours.ca, NAMES),
        "certificate of another authority": TlsFiles(theirs.cert, theirs.key, ours.ca, NAMES),
        "expired certificate": authority.pair("orchestrator", expired=True).files(),
        "trusts another authority": TlsFiles(ours.cert, ours.key, theirs.ca, NAMES),
    }


@pytest.mark.parametrize(
    "kind",
    ["plain", "no certificate", "certificate of another authority", "expired certificate", "trusts another authority"],
)
async def test_callers_without_a_trusted_certificate_are_rejected(serve, authority, stranger, kind):
    served = await serve(authority.pair(HOST))
    stub = served.stub(Peer(strangers(authority, stranger)[kind]))
    assert await code_of(stub.GetInfo(INFO)) == "UNAVAILABLE"
    assert await code_of(stub.Generate(GENERATE).read()) == "UNAVAILABLE"
    assert served.servicer.came_in == 0


@pytest.mark.parametrize("server", ["other name", "expired", "of another authority"])
async def test_nothing_is_sent_to_an_untrusted_server(serve, authority, stranger, server):
    pairs = {
        "other name": lambda: authority.pair("draft.example"),
        "expired": lambda: authority.pair(HOST, expired=True),
        "of another authority": lambda: stranger.pair(HOST),
    }
    served = await serve(pairs[server]())
    stub = served.stub(Peer(authority.pair("orchestrator").files()))
    assert await code_of(stub.GetInfo(INFO)) == "UNAVAILABLE" and served.servicer.came_in == 0


async def test_the_name_to_check_can_be_set(serve, authority):
    served = await serve(authority.pair("draft.example"))
    peer = Peer(authority.pair("orchestrator").files(), name_override="draft.example")
    assert await code_of(served.stub(peer).GetInfo(INFO)) == "OK"


async def first_of(served, peer):
    """What a pool over the name localhost learns there; it may have a record where nobody listens."""
    pool = target_pool(f"dns:///localhost:{served.port}", 2**20, peer)
    try:
        return await pool.info()
    finally:
        await pool.aclose()


async def test_the_replicas_of_a_name_have_certificates_for_the_name(serve, authority):
    served = await serve(authority.pair("localhost"))
    await served.server.set_serving(True)
    await first_of(served, Peer(authority.pair("orchestrator").files()))
    assert served.servicer.came_in > 0


@pytest.mark.parametrize(("certified", "said"), [("elsewhere.example", ""), ("localhost", "draft.example")])
async def test_the_replicas_of_a_name_must_have_them(serve, authority, certified, said):
    served = await serve(authority.pair(certified))
    await served.server.set_serving(True)
    with pytest.raises(TargetUnavailable):
        await first_of(served, Peer(authority.pair("orchestrator").files(), name_override=said))
    assert served.servicer.came_in == 0


async def test_a_name_that_is_set_overrides_that_of_the_address(serve, authority):
    served = await serve(authority.pair("draft.example"))
    await served.server.set_serving(True)
    await first_of(served, Peer(authority.pair("orchestrator").files(), name_override="draft.example"))
    assert served.servicer.came_in > 0


async def test_tls_to_a_plain_port_fails(serve, authority):
    served = await serve(None)
    stub = served.stub(Peer(authority.pair("orchestrator").files()))
    assert await code_of(stub.GetInfo(INFO)) == "UNAVAILABLE" and served.servicer.came_in == 0


async def test_without_a_client_authority_anybody_who_trusts_it_gets_in(serve, authority):
    pair = authority.pair(HOST)
    served = await serve(TlsFiles(pair.cert, pair.key, None, NAMES))
    trusting = TlsFiles(None, None, pair.ca, NAMES)
    assert await code_of(served.stub(Peer(trusting)).GetInfo(INFO)) == "OK"


def serial(port, pair):
    """The server's certificate as it shows it to a new connection."""
    context = ssl.create_default_context(cafile=pair.ca)
    context.load_cert_chain(pair.cert, pair.key)
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((HOST, port)) as plain, context.wrap_socket(plain, server_hostname=HOST) as secure:
        return secure.getpeercert()["serialNumber"]


async def test_a_servers_new_certificate_is_shown_and_a_running_stream_goes_on(serve, authority):
    pair, caller = authority.pair(HOST, into="served"), authority.pair("orchestrator")
    served = await serve(pair)
    call = served.stub(Peer(caller.files())).Generate(GENERATE)
    await call.read()
    before = await asyncio.to_thread(serial, served.port, caller)
    assert before == await asyncio.to_thread(serial, served.port, caller)
    authority.pair(HOST, into="served")
    assert before != await asyncio.to_thread(serial, served.port, caller)
    assert (await call.read()).delta.token_ids == [1]
    assert await code_of(served.stub(Peer(caller.files())).GetInfo(INFO)) == "OK"


@pytest.mark.parametrize("broken", ["key of another", "half a certificate", "no key", "half an authority"])
async def test_half_a_renewal_is_refused_and_logged(serve, authority, caplog, broken):
    caplog.set_level(logging.INFO)
    pair, caller = authority.pair(HOST, into="served"), authority.pair("orchestrator")
    served = await serve(pair)
    before = await asyncio.to_thread(serial, served.port, caller)
    new = authority.pair(HOST, into="new")
    writes = {
        "key of another": lambda: os.replace(new.cert, pair.cert),
        "half a certificate": lambda: pair.cert.write_bytes(new.cert.read_bytes()[:200]),
        "no key": pair.key.unlink,
        "half an authority": lambda: pair.ca.write_bytes(new.ca.read_bytes()[:200]),
    }
    writes[broken]()
    for _ in range(3):
        assert before == await asyncio.to_thread(serial, served.port, caller)
    told = [record for record in caplog.records if "the previous ones stay in use" in record.getMessage()]
    assert len(told) == 1 and str(pair.cert.parent) in told[0].getMessage()
    authority.pair(HOST, into="served")
    assert before != await asyncio.to_thread(serial, served.port, caller)


async def test_an_authority_that_is_replaced_shuts_its_callers_out(serve, authority, stranger):
    pair, caller = authority.pair(HOST, into="served"), authority.pair("orchestrator")
    served = await serve(pair)
    assert await code_of(served.stub(Peer(caller.files())).GetInfo(INFO)) == "OK"
    pair.ca.write_bytes(stranger.ca.read_bytes())
    assert await code_of(served.stub(Peer(caller.files())).GetInfo(INFO)) == "UNAVAILABLE"
    assert served.servicer.came_in == 1


async def test_a_channels_state_is_read_without_looking_at_its_files(authority, monkeypatch):
    """A pool reads the state of every channel for each request."""
    looks, look = [], file_watcher._signature
    monkeypatch.setattr(file_watcher, "_signature", lambda path: looks.append(path) or look(path))
    channel = open_channel("127.0.0.1:1", peer=Peer(authority.pair("orchestrator").files()))
    looks.clear()
    for _ in range(100):
        channel.get_state()
    await channel.close()
    assert len(looks) <= 3  # if a second has passed


async def test_a_callers_new_certificate_is_used_and_its_running_stream_goes_on(
    serve, authority, stranger, monkeypatch
):
    """The server forgets the old authority: only what is really new gets in."""
    monkeypatch.setattr(channel_module, "_LOOK_EVERY_S", 0.0)
    pair, caller = authority.pair(HOST, into="served"), authority.pair("orchestrator", into="caller")
    served = await serve(pair)
    stub = served.stub(Peer(caller.files()))
    call = stub.Generate(GENERATE)
    await call.read()
    pair.ca.write_bytes(stranger.ca.read_bytes())
    theirs = stranger.pair("renewed")
    caller.key.write_bytes(theirs.key.read_bytes())  # half of it: not taken, the call goes over the old connection
    assert await code_of(stub.GetInfo(INFO)) == "OK"
    caller.cert.write_bytes(theirs.cert.read_bytes())
    async with asyncio.timeout(10):
        while b"renewed" not in served.servicer.names:  # no call fails meanwhile
            assert await code_of(stub.GetInfo(INFO)) == "OK"
    assert (await call.read()).delta.token_ids == [1]  # over its own, until it ends
    call.cancel()


async def test_certificates_that_do_not_do_at_the_start_are_refused_by_name(authority, stranger):
    ours, theirs = authority.pair(HOST), stranger.pair(HOST)
    with pytest.raises(PresiftError, match=r"cert, key: .*key values mismatch"):
        TlsFiles(ours.cert, theirs.key, None, NAMES).watched()
    with pytest.raises(PresiftError, match=r"key: cannot read .*nowhere.pem"):
        TlsFiles(ours.cert, ours.key.with_name("nowhere.pem"), None, NAMES).watched()
    with pytest.raises(PresiftError, match="key is unset; cert needs it"):
        TlsFiles(ours.cert, None, None, NAMES)
    ours.ca.write_text("no authority")
    with pytest.raises(PresiftError, match=r"ca: .* contains no certificates"):
        ours.files().watched()


async def test_an_encrypted_key_is_refused_without_asking_anybody(authority):
    pair = authority.pair(HOST)
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"password")
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    with pytest.raises(PresiftError, match="the key is encrypted"):
        pair.files().watched()
