"""A primary, its replica and the Sentinel that watches them, all real."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from redis import Redis

from .valkeys import PASSWORD, free_port, launch, run_valkey, wait_until

SENTINEL_PASSWORD = "sentinel-s3cret"
_LOGIN = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, "--save", "", "--repl-diskless-sync-delay", "0")


@dataclass
class WatchedValkeys:
    """Two servers, of which the first is the primary at the start, and their Sentinel. `processes` in this order."""

    folder: Path
    ports: list[int]
    processes: list[subprocess.Popen[bytes]]
    servers: list[Redis]
    sentinel_port: int
    sentinel: Redis
    _starts: count[int] = field(default_factory=count)

    @classmethod
    def start(cls, folder: Path) -> WatchedValkeys:
        ports = [free_port() for _ in range(3)]
        servers = [Redis(port=port, password=PASSWORD) for port in ports[:2]]
        watched = cls(folder, ports[:2], [], servers, ports[2], Redis(port=ports[2], password=SENTINEL_PASSWORD))
        watched.processes += [watched._run(0), watched._run(1, "--replicaof", f"127.0.0.1 {ports[0]}")]
        for server in servers:
            wait_until(lambda server=server: server.ping())
        wait_until(lambda: servers[1].info("replication")["master_link_status"] == "up")
        watched.processes.append(watched._run_sentinel(ports[0]))
        wait_until(lambda: watched.sentinel.sentinel_master("main")["num-slaves"] == 1)
        return watched

    @property
    def url(self) -> str:
        return self.url_of(f"127.0.0.1:{self.sentinel_port}")

    def url_of(self, hosts: str, service: str = "main", sentinel_password: str = SENTINEL_PASSWORD) -> str:
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{service}?sentinel_password={sentinel_password}"

    @property
    def primary(self) -> int:
        """Which server the Sentinel calls the primary now."""
        return self.ports.index(self.sentinel.sentinel_master("main")["port"])

    def fail_over(self, to: int = 1) -> None:
        """Refused until the Sentinel knows that the replica is in step."""
        wait_until(lambda: self.sentinel.execute_command("SENTINEL FAILOVER", "main"))
        self.wait_for_the_failover(to)

    def wait_for_the_failover(self, to: int = 1) -> None:
        wait_until(lambda: self.servers[to].info("replication")["role"] == "master")
        wait_until(lambda: self.primary == to)

    def kill(self, number: int) -> None:
        """SIGKILL to that server, and wait until it is gone."""
        self.processes[number].kill()
        self.processes[number].wait()

    def revive(self, number: int) -> None:
        """Start that server again, empty, as the replica of the primary. It ends with the calling thread."""
        self.processes[number] = self._run(number, "--replicaof", f"127.0.0.1 {self.ports[self.primary]}")

    def wait_for_the_replica(self, number: int) -> None:
        """Until that server is in step with the primary, and the Sentinel knows."""
        wait_until(lambda: self.servers[number].info("replication")["master_link_status"] == "up")
        wait_until(lambda: self._flags_of_the_replica() == {"slave"})

    def _flags_of_the_replica(self) -> set[str]:
        (replica,) = self.sentinel.sentinel_slaves("main")
        return set(replica["flags"].split(",")) if replica["master-link-status"] == "ok" else set()

    def _run(self, number: int, *options: str) -> subprocess.Popen[bytes]:
        folder = self.folder / f"server-{number}-{next(self._starts)}"
        return run_valkey(folder, "--port", str(self.ports[number]), *_LOGIN, *options)

    def _run_sentinel(self, primary_port: int) -> subprocess.Popen[bytes]:
        config = self.folder / "sentinel.conf"
        config.write_text(
            f"port {self.sentinel_port}\nbind 127.0.0.1\ndir {self.folder}\nrequirepass {SENTINEL_PASSWORD}\n"
            f"sentinel monitor main 127.0.0.1 {primary_port} 1\nsentinel auth-pass main {PASSWORD}\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
        )
        return launch(str(config), "--sentinel")

    def stop(self) -> None:
        for client in (*self.servers, self.sentinel):
            client.close()
        for process in self.processes:
            process.kill()
            process.wait()
