"""The local stack: cache, draft, target and orchestrator as processes on this machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from presift.cache.embedded import embedded_cache
from presift.cli.stack.process import ServiceFailed, ServiceProcess

Progress = Callable[[str], None]

# Threads that spin while they wait would slow down the other services (ops/decisions/0005).
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class Observability:
    """Every service has a metrics port, consecutive from `first_port`, and sends traces to `otlp_endpoint` if set."""

    first_port: int = 9464
    otlp_endpoint: str | None = None

    def address(self, index: int) -> str:
        """The metrics address of the service that is started at this index, from 0."""
        return f"127.0.0.1:{self.first_port + index}"

    def flags(self, index: int) -> list[str]:
        """The flags of that service."""
        traces = [] if self.otlp_endpoint is None else ["--otlp-endpoint", self.otlp_endpoint]
        return ["--metrics-listen", self.address(index), *traces]

    def targets(self, names: Sequence[str]) -> str:
        """JSON for Prometheus' file_sd_configs, from the services' names in the order of their start."""
        entries = [
            {"targets": [self.address(index)], "labels": {"job": f"presift-{_kind(name)}", "service": name}}
            for index, name in enumerate(names)
        ]
        return json.dumps(entries, indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class StackOptions:
    """`draft` and `target` are folders or hub ids. If `cache_url` is None, a local Valkey is started.

    The first orchestrator listens on `listen`, the others on the ports after it; with port 0 each takes any free port.
    The same holds for `http_listen`, if it is set.
    """

    draft: str
    target: str
    tokenizer: str | None
    logs: Path
    listen: str = "127.0.0.1:50051"
    http_listen: str | None = None
    cache_url: str | None = None
    start_timeout_s: float = 600.0
    drain_s: float = 30.0
    # A few shared cores need tens of seconds for a long prompt.
    draft_timeout_s: float = 300.0
    draft_flags: Sequence[str] = ()
    target_flags: Sequence[str] = ()
    orchestrator_flags: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    drafts: int = 1
    targets: int = 1
    orchestrators: int = 1
    observability: Observability | None = None

    @property
    def metrics_listens(self) -> list[str]:
        """The metrics address of every service."""
        services = self.drafts + self.targets + self.orchestrators
        return [] if self.observability is None else [self.observability.address(index) for index in range(services)]

    @property
    def listens(self) -> list[str]:
        """The gRPC address of each orchestrator."""
        return [_nth(self.listen, index) for index in range(self.orchestrators)]

    @property
    def http_listens(self) -> list[str]:
        """The HTTP address of each orchestrator; empty if HTTP is off."""
        return [_nth(self.http_listen, index) for index in range(self.orchestrators)] if self.http_listen else []


class LocalStack:
    """Starts its services on entry, as far as possible in parallel, and stops them on exit, orchestrators first.

    Entry raises ServiceFailed if a service does not start.
    """

    def __init__(self, options: StackOptions, progress: Progress) -> None:
        self.options = options
        self.services: list[ServiceProcess] = []
        self.cache_url = ""
        self._progress = progress
        self._exit = ExitStack()

    @property
    def address(self) -> str:
        """The gRPC address of the (first) orchestrator."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        """The gRPC addresses of the orchestrators."""
        return [service.address for service in self._of("orchestrator")]

    @property
    def http_addresses(self) -> list[str]:
        """The HTTP addresses of the orchestrators; empty if HTTP is off."""
        return [service.http_address for service in self._of("orchestrator") if service.http_address]

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def failed(self) -> ServiceProcess | None:
        """A target or orchestrator that ended and has no running replica, None if there is none.

        An ended draft is no failure: prompts are answered in full without it."""
        needed = (service for service in self.ended() if _kind(service.name) != "draft")
        return next((service for service in needed if not self._has_running_replica(service)), None)

    def ended(self) -> list[ServiceProcess]:
        """The services that ended on their own."""
        return [service for service in self.services if service.exit_code() is not None]

    def _of(self, kind: str) -> list[ServiceProcess]:
        return [service for service in self.services if _kind(service.name) == kind]

    def _has_running_replica(self, service: ServiceProcess) -> bool:
        return any(other.exit_code() is None for other in self._of(_kind(service.name)))

    def _start(self) -> None:
        options = self.options
        options.logs.mkdir(parents=True, exist_ok=True)
        self._start_cache()
        for name in _names("target", options.targets):
            self._launch(name, ["--model", options.target, "--listen", "127.0.0.1:0", *options.target_flags])
        for name in _names("draft", options.drafts):
            self._launch(name, ["--model", options.draft, "--listen", "127.0.0.1:0", *options.draft_flags])
        addresses = {kind: [self._wait(each) for each in self._of(kind)] for kind in ("draft", "target")}
        flags = [
            *("--draft-address", ",".join(addresses["draft"])),
            *("--target-address", ",".join(addresses["target"])),
            *("--draft-timeout-s", str(options.draft_timeout_s)),
            *("--lame-duck-s", "0"),  # no load balancer must notice the end first
            *self._tokenizer_flag(),
            *options.orchestrator_flags,
        ]
        # Not on the command line, where other users could read a password in the URL.
        environment = {"PRESIFT_ORCHESTRATOR_CACHE_URL": self.cache_url}
        http_listens = options.http_listens or [""] * options.orchestrators
        names = _names("orchestrator", options.orchestrators)
        for name, listen, http_listen in zip(names, options.listens, http_listens, strict=True):
            http = ["--http-listen", http_listen] if http_listen else []
            self._launch(name, ["--listen", listen, *http, *flags], environment)
        for orchestrator in self._of("orchestrator"):
            self._wait(orchestrator)
        self._write_prometheus_targets()

    def _write_prometheus_targets(self) -> None:
        if self.options.observability is None:
            return
        path = self.options.logs / "prometheus_targets.json"
        path.write_text(self.options.observability.targets([service.name for service in self.services]))
        self._progress(f"metrics       {', '.join(self.options.metrics_listens)}; Prometheus file_sd file: {path}")

    def _tokenizer_flag(self) -> list[str]:
        return ["--tokenizer", self.options.tokenizer] if self.options.tokenizer else []

    def _start_cache(self) -> None:
        if self.options.cache_url is not None:
            self.cache_url = self.options.cache_url
            return
        self.cache_url = self._exit.enter_context(embedded_cache()).url
        self._progress("cache         ready (embedded Valkey)")

    def _launch(self, name: str, flags: list[str], environment: Mapping[str, str] | None = None) -> ServiceProcess:
        log = self.options.logs / f"{name}.log"
        merged = {**_ENVIRONMENT, **self.options.environment, **(environment or {})}
        observability = self.options.observability
        observed = [] if observability is None else observability.flags(len(self.services))
        flags = [*flags, "--drain-s", str(self.options.drain_s), *observed]
        service = ServiceProcess(name, f"presift.{_kind(name)}", flags, log, merged)
        self.services.append(service)
        self._exit.callback(self._stop, service)
        self._progress(f"{name:13} starting (log: {log})")
        return service

    def _wait(self, service: ServiceProcess) -> str:
        started = time.monotonic()
        address = service.wait_ready(self.options.start_timeout_s)
        self._progress(f"{service.name:13} ready on {address} after {time.monotonic() - started:.0f} s")
        return address

    def _stop(self, service: ServiceProcess) -> None:
        was_running = service.exit_code() is None
        code = service.stop(self.options.drain_s + 10.0)
        if was_running:
            self._progress(f"{service.name:13} stopped" + (f" with code {code}" if code else ""))


def log_folder(home: Path, listen: str) -> Path:
    """A folder that no other running stack uses, because each listens on another port."""
    port = int(listen.rpartition(":")[2]) if listen.rpartition(":")[2].isdecimal() else 0
    return home / "logs" / (str(port) if port else f"any-{os.getpid()}")


def _names(kind: str, count: int) -> list[str]:
    """The names of the replicas of a kind: draft, draft-2, draft-3."""
    return [kind, *(f"{kind}-{number}" for number in range(2, count + 1))]


def _kind(name: str) -> str:
    return name.partition("-")[0]


def _nth(listen: str, index: int) -> str:
    """The address with a port that is higher by `index`; port 0 stays, as it takes any free port."""
    host, _, port = listen.rpartition(":")
    return f"{host}:{int(port) + index}" if int(port) else listen


__all__ = ["LocalStack", "Observability", "ServiceFailed", "StackOptions", "log_folder"]
