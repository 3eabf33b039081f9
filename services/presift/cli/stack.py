"""The local stack: cache, draft, target and orchestrator as processes of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from presift.cache.embedded import embedded_cache
from presift.cli.process import ServiceFailed, ServiceProcess

Progress = Callable[[str], None]

# Threads that spin while they wait take the cores from the other services (ops/decisions/0005).
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class StackOptions:
    """`draft` and `target` are folders or hub ids; `cache_url` None starts a Valkey. Extra flags go to each service."""

    draft: str
    target: str
    tokenizer: str | None
    logs: Path
    listen: str = "127.0.0.1:50051"
    cache_url: str | None = None
    start_timeout_s: float = 600.0
    drain_s: float = 30.0
    # One machine's cores read a long prompt in tens of seconds, and may be shared.
    draft_timeout_s: float = 300.0
    draft_flags: Sequence[str] = ()
    target_flags: Sequence[str] = ()
    orchestrator_flags: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class LocalStack:
    """Starts on entry, in parallel where it can; stops on exit, orchestrator first. Raises ServiceFailed."""

    def __init__(self, options: StackOptions, progress: Progress) -> None:
        self.options = options
        self.services: list[ServiceProcess] = []
        self.cache_url = ""
        self._progress = progress
        self._exit = ExitStack()

    @property
    def address(self) -> str:
        """Where the orchestrator listens."""
        return self.services[-1].address

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
        """A service that ended although it should run, if there is one."""
        return next((service for service in self.services if service.exit_code() is not None), None)

    def _start(self) -> None:
        options = self.options
        options.logs.mkdir(parents=True, exist_ok=True)
        self._start_cache()
        target = self._launch("target", ["--model", options.target, "--listen", "127.0.0.1:0", *options.target_flags])
        draft = self._launch("draft", ["--model", options.draft, "--listen", "127.0.0.1:0", *options.draft_flags])
        addresses = {service.name: self._wait(service) for service in (draft, target)}
        orchestrator = self._launch(
            "orchestrator",
            [
                *("--listen", options.listen),
                *("--draft-address", addresses["draft"]),
                *("--target-address", addresses["target"]),
                *("--draft-timeout-s", str(options.draft_timeout_s)),
                *self._tokenizer_flag(),
                *options.orchestrator_flags,
            ],
            # Not on the command line: the URL may hold a password.
            {"PRESIFT_ORCHESTRATOR_CACHE_URL": self.cache_url},
        )
        self._wait(orchestrator)

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
        flags = [*flags, "--drain-s", str(self.options.drain_s)]
        service = ServiceProcess(name, f"presift.{name}", flags, log, merged)
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


__all__ = ["LocalStack", "ServiceFailed", "StackOptions"]
