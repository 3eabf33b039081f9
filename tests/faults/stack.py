"""A whole presift of real processes with a fault proxy before each: what the fault suite breaks and looks at.

The draft is the real service over a tiny random model, the targets run the echo engine, the cache is a real Valkey.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from presift.cache.embedded import EmbeddedCache, embedded_cache
from presift.cli.stack.process import ServiceProcess

from . import watched
from .proxy import FaultProxy

START_S = 240.0
NOWHERE = "127.0.0.1:1"
KV_POOL_TOKENS = 16_384
DRAIN_S = 5.0
CAPACITY, KV_CAPACITY, CASCADE = 24, 16, 28
WINDOW = 8

_POLICY = {
    "compress-above-tokens": 100,
    "capacity": CAPACITY,
    "window": WINDOW,
    "kernel": 3,
    "neighbors": 4,
    "lookahead-tokens": 2,
    "kv-capacity": KV_CAPACITY,
    "kv-window": WINDOW,
    "kv-lookahead-tokens": 4,
    "cascade-capacity": CASCADE,
}
# What is remembered is so small that a soak is not long enough to see it grow.
_PATIENCE = {"draft-timeout-s": 4, "prefix-memory-mib": 1, "turn-memory-mib": 1}
_FLAGS = [f"--{name}={value}" for name, value in (_POLICY | _PATIENCE).items()]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start. The echo engine takes `token_delay_s` for each token; a leaky target is planted for the soak.
    With a `target_model` the targets are real SGLang engines. Masks are forgotten after `cache_ttl_s`: soon, so that
    the draft is always needed. `direct_cache`: no proxy before the cache, which our own load would make late.
    With a `tokenizer` (a folder) the target reads and writes its text. `code` is where the services come from, as
    `code_of` makes it; empty: this checkout.
    """

    draft_model: Path
    logs: Path
    drafts: int = 1
    targets: int = 1
    orchestrators: int = 2
    token_delay_s: float = 0.002
    orchestrator_flags: Sequence[str] = ("--no-calibrate", "--guard-share=0")
    leaky_target: bool = False
    target_model: Path | None = None
    cache_ttl_s: int = 2
    cache_timeout_s: float = 0.05
    direct_cache: bool = False
    tokenizer: Path | None = None
    code: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Member:
    """One service: how it is started, and its process."""

    module: str
    flags: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    process: ServiceProcess | None = None

    @property
    def running(self) -> ServiceProcess:
        assert self.process is not None
        return self.process


class Stack:
    """Services by name: cache, draft-0, target-0, orchestrator-0, ... Each is reached through the proxy of its name.

    To be used from the main thread: the kernel ends a child with the thread that started it.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.proxies: dict[str, FaultProxy] = {}
        self.members: dict[str, Member] = {}
        self._cache: EmbeddedCache | None = None
        self._cache_exit = ExitStack()

    @property
    def addresses(self) -> list[str]:
        """Of the orchestrators, for callers."""
        return [self.proxies[name].address for name in self._names("orchestrator", self.plan.orchestrators)]

    @property
    def cache(self) -> EmbeddedCache:
        assert self._cache is not None
        return self._cache

    def pid(self, name: str) -> int:
        return self.cache.process.pid if name == "cache" else self.members[name].running.pid

    def is_up(self, name: str) -> bool:
        if name == "cache":
            return self.cache.process.poll() is None
        return self.members[name].running.exit_code() is None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        ending = [name for name, member in self.members.items() if member.process is not None and self.is_up(name)]
        for name in ending:
            self.signal(name, signal.SIGCONT)
        await asyncio.gather(*(self.end(name) for name in ending))
        self._cache_exit.close()
        for proxy in self.proxies.values():
            await proxy.aclose()

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.pid(name), number)

    def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(name, signal.SIGKILL)
        if name == "cache":
            self.cache.process.wait()
        else:
            self.members[name].running.stop(5.0)

    async def end(self, name: str) -> int:
        """SIGTERM, and wait for the drain. Returns the exit code."""
        if name != "cache":
            return await asyncio.to_thread(self.members[name].running.stop, DRAIN_S + 10.0)
        self.cache.process.terminate()
        return await asyncio.to_thread(self.cache.process.wait, 10.0)

    async def launch(self, name: str) -> None:
        """Start it (again) and wait until it is ready; its proxy leads there from now on."""
        if name == "cache":
            self._cache_exit.close()
            self._cache = self._cache_exit.enter_context(embedded_cache())
            self.proxies[name].upstream = self._cache.url.replace("unix://", "unix:")
            return
        member = self.members[name]
        log = self.plan.logs / f"{name}.log"
        environment = _environment() | member.environment | self.environment_of(name)
        member.process = ServiceProcess(name, "watched", [member.module, *member.flags], log, environment)
        self.proxies[name].upstream = await asyncio.to_thread(member.process.wait_ready, START_S)

    def environment_of(self, name: str) -> dict[str, str]:
        """What the process of that name gets to be observed and disturbed by."""
        return {watched.FILE_VARIABLE: str(self.tasks_file(name))}

    def tasks_file(self, name: str) -> Path:
        return self.plan.logs / f"{name}.tasks"

    async def add(self, name: str, member: Member) -> None:
        """Start one more service, behind a proxy of its own."""
        await self._add_proxy(name)
        self.members[name] = member
        await self.launch(name)

    def draft(self, code: Mapping[str, str]) -> Member:
        """A draft, not started."""
        # The prefix cache is full after a few prompts, so that growth of memory in a soak is a leak.
        model = [f"--model={self.plan.draft_model}", "--dtype=float32", "--threads=1", "--prefix-cache-mib=8"]
        return Member("presift.draft", [*_LISTEN, *model], {**code})

    def target(self, code: Mapping[str, str]) -> Member:
        """A target, not started."""
        plan = self.plan
        if plan.target_model is not None:
            size = ["--threads=1", f"--kv-pool-tokens={KV_POOL_TOKENS}", "--no-kv-dropping"]
            flags = [f"--model={plan.target_model}", "--dtype=float32", *size]
            return Member("presift.target", [*_LISTEN, *flags], {**code})
        flags = [f"--token-delay-s={plan.token_delay_s}", *(["--leak"] if plan.leaky_target else [])]
        flags += [f"--tokenizer={plan.tokenizer}"] if plan.tokenizer else []
        return Member("echo_target", [*_LISTEN, *flags], {**code})

    def orchestrator(self, code: Mapping[str, str], drafts: Sequence[str], targets: Sequence[str]) -> Member:
        """An orchestrator of the services of these names, not started."""
        addresses = ["--draft-address", self._at(drafts), "--target-address", self.target_address(targets)]
        cache = [f"--cache-ttl-s={self.plan.cache_ttl_s}", f"--cache-timeout-s={self.plan.cache_timeout_s}"]
        flags = [*_LISTEN, *addresses, *_FLAGS, *cache, *self.plan.orchestrator_flags]
        return Member("presift.orchestrator", flags, {**code, "PRESIFT_ORCHESTRATOR_CACHE_URL": self.cache_url()})

    def target_address(self, names: Sequence[str]) -> str:
        """Where orchestrators find the targets of these names."""
        return self._at(names)

    def cache_url(self) -> str:
        return self.cache.url if self.plan.direct_cache else f"redis://{self._at(['cache'])}"

    async def _start(self) -> None:
        plan = self.plan
        plan.logs.mkdir(parents=True, exist_ok=True)
        drafts, targets = self._names("draft", plan.drafts), self._names("target", plan.targets)
        orchestrators = self._names("orchestrator", plan.orchestrators)
        await self.start_cache()
        models = [(name, self.draft(plan.code)) for name in drafts]
        models += [(name, self.target(plan.code)) for name in targets]
        await asyncio.gather(*(self.add(name, member) for name, member in models))
        frontends = [(name, self.orchestrator(plan.code, drafts, targets)) for name in orchestrators]
        await asyncio.gather(*(self.add(name, member) for name, member in frontends))

    async def start_cache(self) -> None:
        await self._add_proxy("cache")
        await self.launch("cache")

    def new_proxy(self, name: str) -> FaultProxy:
        """For that service, not started; it leads nowhere yet."""
        return FaultProxy(NOWHERE)

    async def _add_proxy(self, name: str) -> None:
        self.proxies[name] = self.new_proxy(name)
        await self.proxies[name].start()

    def _at(self, names: Sequence[str]) -> str:
        return ",".join(self.proxies[name].address for name in names)

    def _names(self, kind: str, number: int) -> list[str]:
        return [f"{kind}-{index}" for index in range(number)]


_FAULTS = Path(__file__).parent
_LISTEN = ["--listen=127.0.0.1:0", f"--drain-s={DRAIN_S}"]


def code_of(checkout: Path) -> dict[str, str]:
    """The environment of services that run that checkout's code, with this folder's modules."""
    places = [_FAULTS, checkout / "tests", checkout / "services", checkout / "clients" / "python"]
    return {"PYTHONPATH": os.pathsep.join(map(str, places))}


def _environment() -> dict[str, str]:
    """Children run this checkout, whatever is installed, and find the modules of this folder and of tests."""
    return code_of(_FAULTS.parents[1]) | {
        "PYTHONUNBUFFERED": "1",
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
    }
