"""Real Valkey servers that work together. Each ends with the process that started it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from presift.cache import die_with_parent
from presift.cache.embedded import valkey_binary

PASSWORD = "server-s3cret"
SLOTS = 16384


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object]) -> None:
    """A server that does not answer yet is asked again."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(RedisError, KeyError):
            if condition():
                return
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def run_valkey(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """A server on loopback that keeps its files in `folder`, a new one."""
    folder.mkdir()
    return launch(*options, "--bind", "127.0.0.1", "--dir", str(folder))


def launch(*options: str) -> subprocess.Popen[bytes]:
    """Valkey with these options. It ends with this process."""
    launcher = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())]
    return subprocess.Popen([*launcher, str(valkey_binary()), *options], stdout=subprocess.DEVNULL)


@dataclass
class ValkeyCluster:
    """`servers`: three primaries, then the replicas of the first ones. `processes` in the same order."""

    servers: list[Redis]
    processes: list[subprocess.Popen[bytes]]
    ports: list[int]

    def stop(self) -> None:
        for server in self.servers:
            server.close()
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    @property
    def url(self) -> str:
        return self.url_of("redis+cluster")

    def url_of(self, scheme: str, *ports: int) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports or self.ports[:3])
        return f"{scheme}://:{PASSWORD}@{hosts}"

    def primary_of(self, key: str) -> Redis:
        """As the cluster was at its start."""
        return self.servers[key_slot(key.encode()) * 3 // SLOTS]

    def move_half(self, slot: int, source: Redis, destination: Redis) -> None:
        """Move the keys of a slot, but not yet the slot."""
        destination.cluster("SETSLOT", slot, "IMPORTING", source.cluster("MYID"))
        source.cluster("SETSLOT", slot, "MIGRATING", destination.cluster("MYID"))
        port = destination.connection_pool.connection_kwargs["port"]
        for key in source.cluster("GETKEYSINSLOT", slot, 1000):
            source.execute_command("MIGRATE", "127.0.0.1", port, key, 0, 5000, "AUTH", PASSWORD)

    def move_rest(self, slot: int, source: Redis, destination: Redis) -> None:
        for server in (destination, source):
            server.cluster("SETSLOT", slot, "NODE", destination.cluster("MYID"))

    def wait_for_the_failover(self) -> None:
        """Until the first replica is a primary, and all know."""
        wait_until(lambda: self.servers[3].info("replication")["role"] == "master")
        wait_until(lambda: all(is_up(each) for each in self.servers[1:]))


@contextlib.contextmanager
def valkey_cluster(folder: Path, replicas: int = 0) -> Iterator[ValkeyCluster]:
    """Runs until the block ends. A replica replaces a primary that is silent for half a second; without replicas none
    is given up so soon, because a busy machine may keep one waiting."""
    timeout_ms = "500" if replicas else "15000"
    common = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, "--save", "", "--repl-diskless-sync-delay", "0")
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", timeout_ms, *common)
    with contextlib.ExitStack() as running:
        cluster = None
        while cluster is None:
            cluster = _started(folder, 3 + replicas, options, running)
        form(cluster.servers, replicas)
        yield cluster


def _started(folder: Path, count: int, options: tuple[str, ...], running: contextlib.ExitStack) -> ValkeyCluster | None:
    """Servers that answer; None if one has ended, because another process had taken its port."""
    ports, buses = [free_port() for _ in range(count)], [free_port() for _ in range(count)]
    cluster = ValkeyCluster([Redis(port=port, password=PASSWORD) for port in ports], [], ports)
    running.callback(cluster.stop)
    for port, bus in zip(ports, buses, strict=True):
        own = ("--port", str(port), "--cluster-port", str(bus))
        cluster.processes.append(run_valkey(folder / f"{port}-{bus}", *own, *options))
    for server, process in zip(cluster.servers, cluster.processes, strict=True):
        wait_until(lambda server=server, process=process: process.poll() is not None or server.ping())
    has_ended = any(process.poll() is not None for process in cluster.processes)
    return None if has_ended else cluster


def form(servers: list[Redis], replicas: int) -> None:
    bus = [int(server.config_get("cluster-port")["cluster-port"]) for server in servers]
    for number, server in enumerate(servers[:3]):
        server.cluster("ADDSLOTSRANGE", -(-SLOTS * number // 3), -(-SLOTS * (number + 1) // 3) - 1)
        server.cluster("SET-CONFIG-EPOCH", number + 1)
    for server, port in zip(servers[1:], bus[1:], strict=True):
        servers[0].cluster("MEET", "127.0.0.1", server.connection_pool.connection_kwargs["port"], port)
    for server in servers:
        wait_until(lambda server=server: is_up(server) and len(server.cluster("NODES")) == len(servers))
    for number in range(replicas):
        servers[3 + number].cluster("REPLICATE", servers[number].cluster("MYID"))
        wait_until(lambda number=number: servers[3 + number].info("replication")["master_link_status"] == "up")


def is_up(server: Redis) -> bool:
    return bool(server.cluster("INFO")["cluster_state"] == "ok")
