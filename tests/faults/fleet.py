"""A fleet: several of each service, targets that are found by a DNS name, and two Valkeys under a Sentinel.

Its services can be given a wrong clock, if `make faketime` has put Debian's libfaketime into the virtual environment.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..contract.fakes.sentinel import WatchedValkeys
from ..contract.fakes.valkeys import free_port
from . import watched
from .proxy import FaultProxy
from .stack import NOWHERE, Plan, Stack

FAKETIME = Path(sys.prefix) / "lib" / "libfaketimeMT.so.1"
_NAME = "targets.fleet.test"
# libfaketime reads the step anew after so long.
_CLOCK_S = 1
_PATIENCE_S = 60.0
# So long without a call, under callers who ask all the time, is the end of calls.
_QUIET_S = 4.0


class Fleet(Stack):
    """A stack whose cache is a pair of Valkeys, without a proxy, and whose targets have one port at addresses of
    127.9.0.0/16."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._valkeys: WatchedValkeys | None = None
        self._port, self._network = free_port(), 0
        self._old: list[FaultProxy] = []
        self.targets = [f"target-{number}" for number in range(plan.targets)]

    @property
    def valkeys(self) -> WatchedValkeys:
        assert self._valkeys is not None
        return self._valkeys

    async def aclose(self) -> None:
        await super().aclose()
        await self.close_old_addresses()
        if self._valkeys is not None:
            self._valkeys.stop()

    async def start_cache(self) -> None:
        # Not in a thread: the servers would end with it.
        self._valkeys = WatchedValkeys.start(self.plan.logs)
        self.name_addresses()

    def cache_url(self) -> str:
        return self.valkeys.url

    def target_address(self, names: Sequence[str]) -> str:
        return f"dns:///{_NAME}:{self._port}"

    def new_proxy(self, name: str) -> FaultProxy:
        if name not in self.targets:
            return super().new_proxy(name)
        return FaultProxy(NOWHERE, host=self._host(name), port=self._port)

    def environment_of(self, name: str) -> dict[str, str]:
        names = {watched.NAMES_VARIABLE: str(self._names_file)}
        return super().environment_of(name) | names | (self._clock_of(name) if name in self.with_clocks else {})

    @property
    def with_clocks(self) -> list[str]:
        """The services whose clocks can be set. No drafts: one was not ready within 240 s under libfaketime."""
        return [name for name in self.members if not name.startswith("draft")] if FAKETIME.exists() else []

    def _clock_of(self, name: str) -> dict[str, str]:
        self.step_clock(name, 0)
        return {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock_file(name)),
            "FAKETIME_CACHE_DURATION": str(_CLOCK_S),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def step_clock(self, name: str, seconds: int) -> None:
        """Set that service's clock to so many seconds after ours."""
        fresh = self._clock_file(name).with_suffix(".new")
        fresh.write_text(f"{seconds:+d}")
        fresh.replace(self._clock_file(name))

    def name_addresses(self, *, are_known: bool = True) -> None:
        """The DNS name has the targets' addresses of now; or none, and its look-up fails."""
        addresses = map(self._host, self.targets) if are_known else ()
        fresh = self._names_file.with_suffix(".new")
        fresh.write_text(" ".join((_NAME, *addresses)))
        fresh.replace(self._names_file)

    async def move_targets(self) -> None:
        """All targets get new addresses, in DNS too. The old ones work until `close_old_addresses`."""
        self._network += 1
        for name in self.targets:
            self._old.append(self.proxies[name])
            self.proxies[name] = self.new_proxy(name)
            self.proxies[name].upstream = self._old[-1].upstream
            await self.proxies[name].start()
        self.name_addresses()

    async def close_old_addresses(self) -> None:
        while self._old:
            await self._old.pop().aclose()

    async def wait_until_moved(self) -> None:
        """Until no call begins at an old address. Connections may last: gRPC ends them when Python collects garbage."""
        async with asyncio.timeout(_PATIENCE_S):
            calls = -1
            while calls != (calls := sum(proxy.calls for proxy in self._old)):
                await asyncio.sleep(_QUIET_S)

    def toggle_stderr(self) -> None:
        """Of each draft and orchestrator that is up: from what is read to a full pipe that nobody reads, or back."""
        for name in self.members:
            if name not in self.targets and self.is_up(name):  # an echo target does not log as services do
                self.signal(name, signal.SIGUSR2)

    async def fail_over(self) -> None:
        """Until the replica of now is the primary: the Sentinel is asked for it, unless the primary is gone."""
        former = self.valkeys.primary
        if self.valkeys.processes[former].poll() is None:
            await asyncio.to_thread(self.valkeys.fail_over, 1 - former)
        await asyncio.to_thread(self.valkeys.wait_for_the_failover, 1 - former)

    async def restart_valkey(self, number: int) -> None:
        """End it, if it runs, and start it as the replica of the other."""
        self.valkeys.kill(number)
        self.valkeys.revive(number)
        await asyncio.to_thread(self.valkeys.wait_for_the_replica, number)

    async def wait_for_a_new_value(self) -> None:
        """Until an orchestrator has stored a value with the primary of now."""
        server = self.valkeys.servers[self.valkeys.primary]
        server.flushall()
        async with asyncio.timeout(_PATIENCE_S):
            while not server.dbsize():
                await asyncio.sleep(0.1)

    @property
    def _names_file(self) -> Path:
        return self.plan.logs / "names"

    def _clock_file(self, name: str) -> Path:
        return self.plan.logs / f"{name}.clock"

    def _host(self, name: str) -> str:
        return f"127.9.{self._network}.{self.targets.index(name) + 1}"
