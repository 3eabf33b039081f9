"""rediss:// with a certificate authority of one's own. The embedded Valkey has no TLS: a proxy before it does."""

import asyncio
import contextlib
import hashlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from presift.cache.embedded import embedded_cache
from presift.cache.factory import open_store
from presift.cache.store import CacheLimits, Operation, Outcome
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo

DIGEST = hashlib.sha256(b"a prompt").hexdigest()
VALUE = CompressedPrompt(TokenMask(np.ones(8, np.bool_)), (1,), 1.0, ModelInfo("draft", "r1", "f", 1, 1, 1, 1))
PATIENT = CacheLimits(timeout_s=5.0, put_timeout_s=5.0)

# Made for this test, for localhost only, valid until 2126; it guards nothing.
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgByqBmFEFDKLAgK4T
9EqfBm7dMhwemBj2dDKFY5dGhL6hRANCAARmyiW9qIeszz3QyK1/mMaFSydofiy5
SDUcoA6Pwd5GR4ppam2dk5voK0OfAdE6o1Fxgj+Ja/ZR3DtVpnKRjxRm
-----END PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUatmHVI2eD5oFVqJMv1oIWtSFWUwwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTA1MzI0NVoYDzIxMjYxMDI4
MDUzMjQ1WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARmyiW9qIeszz3QyK1/mMaFSydofiy5SDUcoA6Pwd5GR4ppam2dk5vo
K0OfAdE6o1Fxgj+Ja/ZR3DtVpnKRjxRmo28wbTAdBgNVHQ4EFgQUSQ5vtGAOYqw4
mJ1uG3j3R19Ft3QwHwYDVR0jBBgwFoAUSQ5vtGAOYqw4mJ1uG3j3R19Ft3QwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIgX3eeLzGhk/o4iO3YJEd6wQ5AY1g+AizMQd3w9OJUzU0CIQDR
HJxn/O/q6Sl0ihXnsVPw5KzuogHdA7N5IcrUqxOVeQ==
-----END CERTIFICATE-----
"""


@pytest.fixture(scope="module")
def valkey_path() -> Iterator[str]:
    with embedded_cache() as cache:
        yield cache.url.removeprefix("unix://")


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    (tmp_path / "key.pem").write_text(KEY)
    (tmp_path / "certificate.pem").write_text(CERTIFICATE)
    return tmp_path / "certificate.pem"


@pytest.fixture
def context(authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, authority.with_name("key.pem"))
    return context


@pytest.fixture
async def port(valkey_path: str, context: ssl.SSLContext) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        from_server, to_server = await asyncio.open_unix_connection(valkey_path)
        with contextlib.suppress(OSError):
            await asyncio.gather(pump(reader, to_server), pump(from_server, writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.gather(*(task for task in tasks if task), return_exceptions=True)


@pytest.fixture
async def sentinel_port(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Of a Sentinel that names the server at `port`. The real one has no TLS here."""
    state = {"name": "main", "ip": "127.0.0.1", "port": str(port), "flags": "master", "num-other-sentinels": "0"}
    parts = [part for pair in state.items() for part in pair]
    answer = f"*1\r\n*{len(parts)}\r\n" + "".join(f"${len(part)}\r\n{part}\r\n" for part in parts)
    async with answering(answer, context) as own_port:
        yield own_port


@pytest.fixture
async def node_port(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Of a node that says that the server at `port` has all slots."""
    answer = f"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:{port}\r\n$2\r\nid\r\n"
    async with answering(answer, context) as own_port:
        yield own_port


@contextlib.asynccontextmanager
async def answering(answer: str, context: ssl.SSLContext) -> AsyncIterator[int]:
    """The port of a server that answers each command with `answer`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65_536):
                writer.write(answer.encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def round_trip(url: str) -> tuple[CompressedPrompt | None, Counter[Outcome]]:
    outcomes: Counter[Outcome] = Counter()

    def observe(operation: Operation, outcome: Outcome) -> None:
        outcomes[outcome] += 1

    store = open_store(url, PATIENT, observe)
    await store.put(DIGEST, VALUE)
    value = await store.get(DIGEST)
    await store.aclose()
    return value, outcomes


@pytest.mark.asyncio
async def test_a_known_authority_is_trusted(port: int, authority: Path) -> None:
    value, outcomes = await round_trip(f"rediss://localhost:{port}?ssl_ca_certs={authority}")
    assert value == VALUE and outcomes == {Outcome.STORED: 1, Outcome.HIT: 1}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "url",
    [
        "rediss://localhost:{port}",  # the system's authorities do not know it
        "rediss://localhost:{port}?ssl_ca_certs=/nowhere.pem",
        "rediss://127.0.0.2:{port}?ssl_ca_certs={authority}",  # not in the certificate
        "redis://localhost:{port}",
    ],
)
async def test_without_trust_there_is_no_cache(url: str, port: int, authority: Path) -> None:
    value, outcomes = await round_trip(url.format(port=port, authority=authority))
    assert value is None and outcomes.total() == 2
    assert not outcomes.keys() & {Outcome.HIT, Outcome.STORED, Outcome.MISS}


@pytest.mark.asyncio
async def test_sentinels_and_their_server_are_reached_by_tls(sentinel_port: int, authority: Path) -> None:
    hosts = f"localhost:{sentinel_port}"
    value, outcomes = await round_trip(f"rediss+sentinel://{hosts}/main?ssl_ca_certs={authority}")
    assert value == VALUE and outcomes == {Outcome.STORED: 1, Outcome.HIT: 1}
    for url in (f"rediss+sentinel://{hosts}/main", f"redis+sentinel://{hosts}/main"):  # no trust, no TLS
        value, outcomes = await round_trip(url)
        assert value is None and outcomes == {Outcome.ERROR: 2}


@pytest.mark.asyncio
async def test_a_cluster_is_trusted_by_the_same_authority(node_port: int, authority: Path) -> None:
    value, outcomes = await round_trip(f"rediss+cluster://localhost:{node_port}?ssl_ca_certs={authority}")
    assert value == VALUE and outcomes == {Outcome.STORED: 1, Outcome.HIT: 1}
    value, outcomes = await round_trip(f"rediss+cluster://localhost:{node_port}")
    assert value is None and outcomes.total() == 2
