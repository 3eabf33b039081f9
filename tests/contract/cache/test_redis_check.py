"""The check at start, with real Valkey servers that refuse something: the server's own code, and what to do."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from presift.cache.embedded import embedded_cache
from presift.core.errors import InvalidRequest
from presift.orchestrator.redis_check import check_redis

SECURITY = Path(__file__).parents[3] / "ops" / "security.md"
PASSWORD = "hunter2-s3cret"


@pytest.fixture(scope="module")
def valkey_path() -> Iterator[str]:
    with embedded_cache() as cache:
        yield cache.url.removeprefix("unix://")


@pytest.fixture
def admin(valkey_path: str) -> Iterator[Redis]:
    with Redis(unix_socket_path=valkey_path) as client:
        client.flushall()
        yield client
        client.config_set("maxmemory", 256 << 20)
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.execute_command("REPLICAOF", "NO", "ONE")
        client.config_set("requirepass", "")


def rights() -> list[str]:
    """The rights of the ACL command that the operators' manual shows."""
    command = re.search(r"^ACL SETUSER presift (.*?)^```", SECURITY.read_text(), re.DOTALL | re.MULTILINE)
    assert command
    return command[1].replace("PASSWORD", PASSWORD).split()


async def refusal_of(url: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        await check_redis(url, has_limits=True)
    assert refused.value.field == "cache_url" and PASSWORD not in str(refused.value)
    return refused.value


@pytest.mark.asyncio
async def test_a_good_server_passes_and_keeps_nothing_for_long(admin: Redis, valkey_path: str) -> None:
    await check_redis(f"unix://{valkey_path}", has_limits=True)
    await check_redis("memory://", has_limits=True)
    lives_s = [admin.ttl(key) for key in admin.scan_iter()]
    assert all(0 <= each <= 120 for each in lives_s)


@pytest.mark.asyncio
async def test_the_rights_in_the_manual_suffice(admin: Redis, valkey_path: str) -> None:
    admin.execute_command("ACL", "SETUSER", "presift", "reset", *rights())
    admin.script_flush()
    await check_redis(f"unix://presift:{PASSWORD}@{valkey_path}", has_limits=True)


# +hello only tells a mode sooner; +select is for a URL with a database.
@pytest.mark.asyncio
@pytest.mark.parametrize(
    "missing", [each for each in rights() if each[0] in "~+" and each not in ("+hello", "+select")]
)
async def test_each_of_them_is_needed_and_checked(missing: str, admin: Redis, valkey_path: str) -> None:
    admin.execute_command("ACL", "SETUSER", "presift", "reset", *(each for each in rights() if each != missing))
    admin.script_flush()
    error = await refusal_of(f"unix://presift:{PASSWORD}@{valkey_path}")
    assert "(NOPERM)" in str(error.value) and "ops/security.md" in str(error.limit)


@pytest.mark.asyncio
async def test_a_full_server_is_named(admin: Redis, valkey_path: str) -> None:
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", 1)
    error = await refusal_of(f"unix://{valkey_path}")
    assert "(OOM)" in str(error.value) and "allkeys-lru" in str(error.limit)


@pytest.mark.asyncio
async def test_a_replica_is_named(admin: Redis, valkey_path: str) -> None:
    admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    error = await refusal_of(f"unix://{valkey_path}")
    assert "(READONLY)" in str(error.value) and "primary" in str(error.limit)


@pytest.mark.asyncio
@pytest.mark.parametrize(("login", "code"), [("", "NOAUTH"), (f":{PASSWORD}@", "WRONGPASS")])
async def test_a_wrong_login_is_named(login: str, code: str, admin: Redis, valkey_path: str) -> None:
    admin.config_set("requirepass", "the right one")
    admin.execute_command("AUTH", "the right one")
    error = await refusal_of(f"unix://{login}{valkey_path}")
    assert f"({code})" in str(error.value) and "password" in str(error.limit)


@pytest.mark.asyncio
@pytest.mark.parametrize("answer", ["MOVED 1 127.0.0.1:1", "ASK 1 127.0.0.1:1", "CROSSSLOT keys", "CLUSTERDOWN it"])
async def test_a_cluster_that_hides_its_mode_is_named(answer: str) -> None:
    async with answering(answer) as url:
        error = await refusal_of(url)
    assert f"({answer.partition(' ')[0]})" in str(error.value) and "redis+cluster://" in str(error.limit)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "code", "fix"),
    [
        ("ERR This instance has cluster support disabled", "(ERR)", "redis://HOST"),
        ("NOPERM no permissions to run the 'cluster|slots' command", "(NOPERM)", "ops/security.md"),
        ("NOAUTH Authentication required.", "(NOAUTH)", "password"),
    ],
)
async def test_one_server_in_place_of_a_cluster_is_named(answer: str, code: str, fix: str) -> None:
    async with answering(answer) as url:
        error = await refusal_of(url.replace("redis://", "redis+cluster://"))
    assert code in str(error.value) and fix in str(error.limit)


@pytest.mark.asyncio
@pytest.mark.parametrize("answer", ["LOADING the dataset", "MASTERDOWN no primary", "BUSY a script"])
async def test_a_server_that_is_not_ready_yet_is_waited_for(answer: str, caplog: pytest.LogCaptureFixture) -> None:
    async with answering(answer) as url:
        await check_redis(url, has_limits=True)
    assert f"the cache server does not answer: {answer.partition(' ')[0]}" in caplog.text


@pytest.mark.asyncio
async def test_a_server_that_is_down_is_no_reason_to_stay_down(caplog: pytest.LogCaptureFixture) -> None:
    await check_redis("unix:///nowhere/valkey.sock", has_limits=True)
    assert [each.levelname for each in caplog.records] == ["WARNING"] and "does not answer;" in caplog.text


@pytest.mark.asyncio
async def test_without_limits_a_refusal_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with answering("NOPERM no") as url:
        await check_redis(url, has_limits=False)
    assert [each.levelname for each in caplog.records] == ["WARNING"] and "(NOPERM)" in caplog.text


class answering:
    """A server that answers each command with one error."""

    def __init__(self, error: str) -> None:
        self._error = error

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            writer.write(f"-{self._error}\r\n".encode())
        writer.close()
