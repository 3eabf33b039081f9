"""What the lease and the single flight promise, in all orders of their commands with up to so many faults.

The real Compressor, RedisStore, RedisBuildLock, HeldLeases and SingleFlight run over a fake Redis with a clock of its
own (`interleavings.py`). Times are a fifth of the defaults, with the same proportions. The promises:

1. A lease changes its holder, ends or is prolonged by its holder alone, or it expires.
2. At most one draft pass runs at a time, and one more for each process that was paused and each command that had no
   reply in time. So a paused holder may compute beside the one that took its lease over; both write the same value.
3. A value that was stored stays.
4. Every caller whose process lives gets the value, at most one lease and one draft pass later for each process that
   died and each caller that left.
5. Once all callers have ended, no lease is renewed any more. One may be left in Redis, until it expires, only if a
   process died or was paused, or messages were lost or came late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from presift.cache import redis_build_lock
from presift.cache.redis_build_lock import RedisBuildLock
from presift.cache.redis_store import RedisStore
from presift.cache.store import CacheLimits
from presift.core.errors import DraftUnavailable
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt
from presift.core.policies import SpecPc
from presift.orchestrator.domain.ports import Score
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.planning.compressor import Compressor
from presift.orchestrator.planning.mask_validation import ScoringJob

from ...builders import MODEL
from .interleavings import PAUSE_S, Client, Command, World, explore

LEASE_S, PASS_S = 0.6, 0.65
LIMITS = CacheLimits(timeout_s=0.01, put_timeout_s=0.05)
LONGEST_POLL_S = 0.2
JOB = ScoringJob(TokenizedPrompt(np.arange(8, dtype=np.uint32), ()), SpecPc(8, window=2), MODEL, MODEL)
PROMPT = CompressedPrompt(TokenMask(np.ones(8, np.bool_)), (), 1.0, MODEL)
ORDERS = frozenset(("overtake", "delay", "kill", "leave"))
NETWORK = frozenset(("overtake", "delay", "hold", "lose", "arrive"))
ALL = ORDERS | NETWORK | {"pause"}
LONG = pytest.mark.faults


@dataclass(eq=False)
class Orchestrators(World):
    """Several orchestrators, and the lock of each."""

    locks: list[RedisBuildLock] = field(default_factory=list)


class Draft:
    """A draft whose passes take PASS_S; the first `failures` of them fail."""

    def __init__(self, world: World, process: int, failures: int = 0) -> None:
        self._world = world
        self._process = process
        self._failures = failures

    async def score(self, *args: Any, **options: Any) -> Score:
        world = self._world
        world.marks["passes"] += 1
        world.marks[f"computes {self._process}"] += 1
        try:
            check_passes(world)
            await asyncio.sleep(PASS_S)
            if world.marks["failed"] < self._failures:
                world.marks["failed"] += 1
                raise DraftUnavailable("busy")
            return Score(PROMPT, None)
        finally:
            world.marks[f"computes {self._process}"] -= 1


def check_passes(world: World) -> None:
    """Promise 2."""
    living = [each for each in range(world.processes) if not world.loops[each].is_dead]
    running = sum(world.marks[f"computes {each}"] for each in living)
    most = 1 + world.faults["pause"] + world.marks["timeouts"]
    assert running <= most, f"{running} draft passes at once"


def check_lease(world: World, command: Command, values: dict[str, bytes], expires_s: dict[str, float]) -> None:
    """Promises 1 and 3, after a command."""
    for key, before in values.items():
        if not key.endswith(":lease"):
            assert world.redis.get(key) is not None, f"{command.words} lost a value"
            continue
        if expires_s[key] <= world.now:
            continue
        holder = before.decode()
        is_changed = world.redis.get(key) != before or world.redis.expires_s[key] != expires_s[key]
        assert not is_changed or holder in command.words, f"{command.words[1:]} changed the lease of {holder}"


def check_end(world: Orchestrators) -> None:
    """Promises 4 and 5."""
    assert not world.errors, world.errors
    deaths = world.faults["kill"] + world.faults["leave"] + world.marks["failed"]
    most_s = (1 + deaths) * (PASS_S + LEASE_S + LONGEST_POLL_S)
    most_s += world.faults["pause"] * (PAUSE_S + PASS_S) + world.marks["timeouts"] * (PASS_S + LIMITS.claim_timeout_s)
    for number, (process, task) in enumerate(world.callers):
        if world.loops[process].is_dead or number in world.left:
            continue
        assert task.done(), f"caller {number} still waits at {world.now:.2f} s"
        assert task.exception() is None or world.marks["failed"], repr(task.exception())
        assert world.ended_s[number] <= most_s, f"caller {number} waited {world.ended_s[number]:.2f} s of {most_s:.2f}"
    for loop, lock in zip(world.loops, world.locks, strict=True):
        assert loop.is_dead or (lock.held == 0 and all(task.done() for task in loop.tasks)), "something is left"
    ends_s = [end_s for key, end_s in world.redis.expires_s.items() if key.endswith(":lease")]
    assert all(end_s <= world.now + LEASE_S for end_s in ends_s)
    if not (world.faults["kill"] or world.faults["pause"] or world.marks["timeouts"]):
        assert world.marks["passes"] <= 1 + deaths, f"{world.marks['passes']} draft passes"
        # The release of a caller that leaves may be lost, or overtake its claim. Then the lease expires, as that of a
        # dead process.
        may_be_left = world.faults["leave"] and any(world.faults[each] for each in NETWORK)
        assert may_be_left or all(end_s <= world.now for end_s in ends_s), "a lease is left"


def scenario(
    processes: int, faults: int, kinds: frozenset[str] = ALL, callers: int = 1, failures: int = 0
) -> Callable[[], Orchestrators]:
    """So many processes, in each of which so many callers want the same prompt at once."""

    def make() -> Orchestrators:
        world = Orchestrators(processes, faults, kinds, check_lease)
        for each in range(processes):
            store = RedisStore(Client(world, each), LIMITS)  # type: ignore[arg-type]
            lock = RedisBuildLock(store, wait_s=10 * LEASE_S, lease_s=LEASE_S)
            lock._holder = f"process {each}"  # by chance otherwise, so that no state would be seen twice
            world.locks.append(lock)
            compressor = Compressor(Draft(world, each, failures), store, lock, draft_timeout_s=60.0)
            for _ in range(callers):
                world.start(each, compressor.compress(JOB))
        return world

    return make


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"processes": 2, "faults": 1}, id="2 processes, 1 fault"),
        pytest.param({"processes": 3, "faults": 1}, id="3 processes, 1 fault"),
        pytest.param({"processes": 2, "faults": 1, "callers": 2}, id="2 callers each, 1 fault"),
        pytest.param({"processes": 2, "faults": 1, "failures": 1}, id="a pass fails, 1 fault"),
        pytest.param({"processes": 2, "faults": 2, "kinds": ORDERS}, id="2 processes, 2 faults of processes"),
        pytest.param({"processes": 2, "faults": 2, "kinds": NETWORK}, id="2 processes, 2 faults of messages"),
        pytest.param({"processes": 3, "faults": 2, "kinds": ORDERS}, id="3 processes, 2 faults", marks=LONG),
        pytest.param({"processes": 2, "faults": 2, "callers": 2, "failures": 1}, id="all, 2 faults", marks=LONG),
    ],
)
def test_the_promises_hold_in_every_order(options: dict[str, Any]) -> None:
    runs = explore(scenario(**options), check_end)
    print(f"{runs} runs")
    assert runs > 50


def test_a_renewal_without_a_look_at_the_holder_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_build_lock, "_RENEW", "return redis.call('pexpire', KEYS[1], ARGV[2])")
    with pytest.raises(AssertionError, match="changed the lease of"):
        explore(scenario(2, 2, frozenset(("pause", "kill"))), check_end)


def test_a_release_without_a_look_at_the_holder_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_build_lock, "_RELEASE", "return redis.call('del', KEYS[1])")
    with pytest.raises(AssertionError, match="changed the lease of"):
        explore(scenario(2, 1), check_end)


def test_a_claim_that_takes_a_lease_from_its_holder_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_build_lock, "_CLAIM", "redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])\nreturn 1")
    with pytest.raises(AssertionError, match=r"draft passes at once|changed the lease of"):
        explore(scenario(2, 0), check_end)


def test_waiting_without_asking_again_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_build_lock, "_POLL_S", 5.0)
    monkeypatch.setattr(redis_build_lock, "_LONGEST_POLL_S", 5.0)
    with pytest.raises(AssertionError, match="waited"):
        explore(scenario(2, 0), check_end)


def test_a_lease_that_is_not_renewed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_build_lock, "_RENEW", "return 0")
    with pytest.raises(AssertionError, match="2 draft passes at once"):
        explore(scenario(2, 0), check_end)


def test_a_look_at_the_value_before_the_claim_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder may store the value and release in between."""

    async def take_or_wait(self: RedisBuildLock, digest: str) -> CompressedPrompt | None:
        value = await self._values.get(digest)
        if value is None and await self._claim(digest) == 1:
            self._leases.add(digest)
            return None
        if value is None:
            await asyncio.sleep(0.02)
            return await take_or_wait(self, digest)
        return value

    monkeypatch.setattr(RedisBuildLock, "_take_or_wait", take_or_wait)
    with pytest.raises(AssertionError, match="2 draft passes"):
        explore(scenario(2, 2, frozenset(("overtake", "delay"))), check_end)
