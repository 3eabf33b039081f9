"""The replicas behind a name: added, removed and closed. Channels are fakes: none connects."""

import asyncio
import time
from contextvars import ContextVar
from unittest.mock import Mock

import grpc
import pytest

from presift.core.errors import DraftUnavailable
from presift.rpc.circuit_breaker import BreakerState
from presift.rpc.pool import heartbeat
from presift.rpc.pool import pool as fleet_module
from presift.rpc.pool.pool import ReplicaPool
from presift.rpc.pool.reference import MINORITY_S
from presift.rpc.pool.replica import ReplicaInfo
from presift.rpc.pool.resolver import DnsName, StaticAddresses
from presift.rpc.pool.retry import AttemptedReplicas
from presift.rpc.pool.service import Service

READY, AWAY = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Channel:
    """Its state is what is said; `model` is what the replica behind it runs."""

    def __init__(self):
        self.state, self.closed, self.model = READY, False, "m"
        self._moved, self.moves, self.checks = asyncio.Event(), 0, 0

    def get_state(self, try_to_connect=False):
        return self.state

    async def wait_for_state_change(self, last):
        moves = self.moves
        while self.state is last and self.moves == moves:
            await self._moved.wait()
            self._moved.clear()

    def move(self, state):
        self.state, self.moves = state, self.moves + 1
        self._moved.set()

    def unary_unary(self, method, **options):
        async def check(request, timeout):
            assert method == "/grpc.health.v1.Health/Check" and not self.closed
            self.checks += 1

        return check

    unary_stream = unary_unary  # health.v1's stub makes all methods

    async def close(self):
        self.closed = True


@pytest.fixture
def channels():
    return {}


@pytest.fixture
async def build(channels):
    """where -> a fleet over fake channels; closed at the end."""
    fleets = []

    def connect(address, is_alone):
        channel = channels[address] = channels.get(address) or Channel()
        return channel, channel

    def build(where, *, is_pinned=False, heard=lambda: None, clock=time.monotonic, **more):
        async def ask(stub):
            heard()
            return ReplicaInfo(f"process at {id(stub)}", stub.model)

        def differs(first, other):
            return "" if first == other else f"{other}, not {first}"

        service = Service("draft", DraftUnavailable, connect, ask, differs, is_pinned, **more)
        fleets.append(ReplicaPool(where, service, 0.01, clock))
        return fleets[-1]

    yield build
    for fleet in fleets:
        await fleet.aclose()


@pytest.fixture
def dns(monkeypatch):
    """What the name server says: addresses, or an error."""
    says = [("a:1", "b:1")]

    async def resolved(named):
        if isinstance(says[-1], Exception):
            raise says[-1]
        return says[-1]

    monkeypatch.setattr(fleet_module, "resolve", resolved)
    return says


async def settle(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def addresses(fleet):
    return sorted(each.address for each in fleet.usable())


async def test_a_name_is_looked_up_again(build, dns):
    fleet = build(DnsName("draft", 1))
    assert await fleet.info() == "m"
    await settle(lambda: addresses(fleet) == ["a:1", "b:1"])
    dns.append(("b:1", "c:1"))
    await settle(lambda: addresses(fleet) == ["b:1", "c:1"])


async def test_replicas_are_used_until_those_of_new_addresses_are_ready(build, dns, channels):
    fleet = build(DnsName("draft", 1))
    await settle(lambda: addresses(fleet) == ["a:1", "b:1"])
    channels |= {"c:1": Channel(), "d:1": Channel()}
    channels["c:1"].state = channels["d:1"].state = grpc.ChannelConnectivity.CONNECTING
    dns.append(("c:1", "d:1"))
    await settle(lambda: len(fleet.statuses()) == 4)
    await asyncio.sleep(0.05)
    assert addresses(fleet) == ["a:1", "b:1"]
    channels["c:1"].move(READY)
    await settle(lambda: addresses(fleet) == ["a:1", "b:1", "c:1"])
    await asyncio.sleep(0.05)
    assert addresses(fleet) == ["a:1", "b:1", "c:1"], "the load of two would be that of one"
    channels["d:1"].move(AWAY)
    await settle(lambda: addresses(fleet) == ["c:1"] and channels["a:1"].closed and channels["b:1"].closed)


async def test_replicas_are_used_while_those_of_new_addresses_fail(build, dns, channels):
    fleet = build(DnsName("draft", 1))
    await settle(lambda: addresses(fleet) == ["a:1", "b:1"])
    channels["c:1"] = Channel()
    channels["c:1"].state = AWAY
    dns.append(("c:1",))
    await settle(lambda: len(fleet.statuses()) == 3)
    await asyncio.sleep(0.05)
    assert addresses(fleet) == ["a:1", "b:1"]


async def test_a_replica_without_an_address_leaves_in_any_case(build, dns, channels):
    now = [0.0]
    fleet = build(DnsName("draft", 1), clock=lambda: now[0])
    await settle(lambda: addresses(fleet) == ["a:1", "b:1"])
    channels["c:1"] = Channel()
    channels["c:1"].state = AWAY
    dns.append(("c:1",))
    await settle(lambda: len(fleet.statuses()) == 3)
    now[0] = fleet_module._WITHDRAWN_S - 1
    await asyncio.sleep(0.05)
    assert addresses(fleet) == ["a:1", "b:1"]
    now[0] += 1
    await settle(lambda: channels["a:1"].closed and channels["b:1"].closed)
    assert addresses(fleet) == []


@pytest.mark.parametrize("is_pinned", [False, True])
async def test_replicas_that_leave_do_not_keep_another_kind_out(build, dns, channels, is_pinned):
    now = [0.0]
    fleet = build(DnsName("draft", 1), clock=lambda: now[0], is_pinned=is_pinned)
    await settle(lambda: addresses(fleet) == ["a:1", "b:1"])
    channels |= {"c:1": Channel(), "d:1": Channel()}
    channels["c:1"].model = channels["d:1"].model = "other"
    dns.append(("c:1", "d:1"))
    if is_pinned:
        await settle(lambda: len(fleet.statuses()) == 4)
        await asyncio.sleep(0.05)
        assert addresses(fleet) == ["a:1", "b:1"]
        now[0] = MINORITY_S
    await settle(lambda: addresses(fleet) == ["c:1", "d:1"])


async def test_an_address_that_comes_back_stays(build, dns, channels):
    fleet = build(DnsName("draft", 1))
    await settle(lambda: addresses(fleet) == ["a:1", "b:1"])
    channels["c:1"] = Channel()
    channels["c:1"].state = grpc.ChannelConnectivity.CONNECTING
    dns.append(("c:1",))
    await settle(lambda: len(fleet.statuses()) == 3)
    dns.append(("a:1", "c:1"))
    await settle(lambda: set(fleet._withdrawn) <= {"b:1"})
    channels["c:1"].move(READY)
    await settle(lambda: addresses(fleet) == ["a:1", "c:1"] and channels["b:1"].closed)
    assert not channels["a:1"].closed


async def test_an_unavailable_name_server_removes_no_replica(build, dns):
    fleet = build(DnsName("draft", 1))
    await settle(lambda: addresses(fleet) == ["a:1", "b:1"])
    dns.append(OSError("no name server"))
    await asyncio.sleep(0.05)
    assert addresses(fleet) == ["a:1", "b:1"]


async def test_a_removed_replica_is_closed_after_its_last_call(build, dns, channels):
    fleet = build(DnsName("draft", 1))
    await settle(lambda: len(fleet.usable()) == 2)
    leaving = next(each for each in fleet.usable() if each.address == "a:1")
    with leaving.counted():
        dns.append(("b:1",))
        await settle(lambda: addresses(fleet) == ["b:1"])
        await asyncio.sleep(0.05)
        assert not channels["a:1"].closed
    await settle(lambda: channels["a:1"].closed)


async def test_nobody_is_there(build, dns, channels):
    dns.append(())
    fleet = build(StaticAddresses(("a:1", "b:1")))
    for channel in channels.values():
        channel.state = AWAY
    with pytest.raises(DraftUnavailable, match="none of 2"):
        await fleet.info()
    with pytest.raises(DraftUnavailable, match="none of 2"):
        fleet.pick("key")


async def test_a_disconnected_replica_is_unidentified_again(build, channels):
    fleet = build(StaticAddresses(("a:1", "b:1")))
    await fleet.info()
    await settle(lambda: len(fleet.usable()) == 2)
    gone = next(each for each in fleet.usable() if each.address == "a:1")
    channels["a:1"].move(AWAY)
    await settle(lambda: gone.known is None)
    assert addresses(fleet) == ["b:1"]
    channels["a:1"].model = "other"
    channels["a:1"].move(READY)
    await settle(lambda: [each.unused for each in fleet.statuses()] == ["other, not m", ""])
    assert addresses(fleet) == ["b:1"]


async def test_a_replica_that_reconnected_between_two_checks_is_identified_again(build, channels):
    fleet = build(StaticAddresses(("a:1", "b:1")))
    await settle(lambda: len(fleet.usable()) == 2)
    channels["a:1"].model = "other"
    channels["a:1"].move(AWAY)
    channels["a:1"].move(READY)
    await settle(lambda: [each.unused for each in fleet.statuses()] == ["other, not m", ""])


REQUEST = ContextVar("request", default="")


async def test_its_tasks_have_a_context_of_their_own(build, dns, monkeypatch):
    seen, resolved = [], fleet_module.resolve

    async def noting(where):
        seen.append(REQUEST.get())
        return await resolved(where)

    monkeypatch.setattr(fleet_module, "resolve", noting)
    REQUEST.set("of the first caller")
    fleet = build(DnsName("draft", 1), heard=lambda: seen.append(REQUEST.get()))
    await settle(lambda: len(fleet.usable()) == 2)
    await settle(lambda: len(seen) >= 4)
    assert set(seen) == {""}


async def test_looking_up_survives_whatever_happens_and_says_it_once(build, dns, caplog):
    fleet = build(DnsName("draft", 1))
    await settle(lambda: addresses(fleet) == ["a:1", "b:1"])
    dns.append(UnicodeError("label empty or too long"))
    await asyncio.sleep(0.1)
    assert addresses(fleet) == ["a:1", "b:1"]
    assert [each.getMessage() for each in caplog.records if "cannot resolve" in each.getMessage()] == [
        "draft: cannot resolve draft: UnicodeError: label empty or too long"
    ]
    dns.append(("c:1",))
    await settle(lambda: addresses(fleet) == ["c:1"])


@pytest.mark.parametrize("is_pinned", [False, True])
async def test_the_measure_moves_where_it_may(build, channels, is_pinned):
    times, switches = [0.0], []
    fleet = build(StaticAddresses(("a:1", "b:1")), is_pinned=is_pinned, clock=lambda: times[-1])
    fleet.on_switch(switches.append)
    channels["b:1"].model = "new"
    channels["b:1"].state = AWAY
    assert await fleet.info() == "m"
    channels["b:1"].move(READY)
    await settle(lambda: fleet.statuses()[1].unused)
    channels["a:1"].move(AWAY)
    if is_pinned:
        await settle(lambda: not fleet.usable() and fleet._replicas["a:1"].known is None)
        assert fleet.statuses()[1].unused == "new, not m"
        times.append(MINORITY_S)
    await settle(lambda: addresses(fleet) == ["b:1"])
    assert switches == ["new"]
    assert await fleet.info() == "new"
    channels["a:1"].move(READY)
    await settle(lambda: fleet.statuses()[0].unused == "m, not new")


@pytest.fixture
def fleet_of_eight(build, channels):
    """options -> a fleet of which the first address runs "canary", and which is known before all others."""

    async def fleet_of_eight(**options):
        addresses = tuple(f"{letter}:1" for letter in "abcdefgh")
        for address in addresses:
            channels[address] = Channel()
            channels[address].state = grpc.ChannelConnectivity.CONNECTING
        channels["a:1"].model, channels["a:1"].state = "canary", READY
        fleet = build(StaticAddresses(addresses), is_pinned=True, **options)
        await settle(lambda: fleet.usable() or fleet.statuses()[0].unused)
        return fleet

    return fleet_of_eight


async def test_the_first_one_decides_nothing_if_the_others_come_soon(fleet_of_eight, channels):
    fleet = await fleet_of_eight()
    asked = asyncio.create_task(fleet.info())
    await asyncio.sleep(0.02)
    assert not asked.done() and fleet.reference is None
    for address in "bcdefgh":
        channels[f"{address}:1"].move(READY)
    assert await asked == "m"
    assert addresses(fleet) == [f"{letter}:1" for letter in "bcdefgh"]
    assert fleet.statuses()[0].unused == "canary, not m"


async def test_the_first_one_decides_for_a_minute_if_they_come_late(fleet_of_eight, channels, monkeypatch, caplog):
    monkeypatch.setattr(fleet_module, "_INFO_TIMEOUT_S", 0.02)
    times = [0.0]
    fleet = await fleet_of_eight(clock=lambda: times[-1])
    assert await fleet.info() == "canary"
    began = fleet.reference
    for address in "bcdefgh":
        channels[f"{address}:1"].move(READY)
    await settle(lambda: all(each.unused for each in fleet.statuses()[1:]))
    times.append(MINORITY_S - 1)
    await asyncio.sleep(0.05)
    assert addresses(fleet) == ["a:1"] and "another kind" not in caplog.text
    times.append(MINORITY_S)
    await settle(lambda: addresses(fleet) == [f"{letter}:1" for letter in "bcdefgh"])
    assert caplog.text.count("draft: another kind of replica is used now") == 1
    # What was planned for the former kind goes on there.
    assert [each.address for each in fleet.pick("key", like=began)] == ["a:1"]
    name = fleet.statuses()[0].name
    assert fleet.named(name) is None and fleet.named(name, began).address == "a:1"


async def test_a_refused_one_is_never_used_and_chooses_nothing(build, channels):
    for address, model in (("a:1", "x"), ("b:1", "x"), ("c:1", "m")):
        channels[address] = Channel()
        channels[address].model = model
    fleet = build(StaticAddresses(("a:1", "b:1", "c:1")), refusal=lambda info: "refused" if info == "x" else "")
    assert await fleet.info() == "m"
    await settle(lambda: [each.unused for each in fleet.statuses()] == ["refused", "refused", ""])
    assert addresses(fleet) == ["c:1"]


async def test_where_all_breakers_are_open_all_are_asked(build):
    fleet = build(StaticAddresses(("a:1", "b:1")))
    await settle(lambda: len(fleet.usable()) == 2)
    first, second = fleet.usable()
    for _ in range(5):
        first.breaker.record_failure(time.monotonic())
    assert fleet.usable() == [second]
    for _ in range(5):
        second.breaker.record_failure(time.monotonic())
    assert fleet.usable() == [first, second]


async def test_whoever_was_shown_to_a_replica_finds_it_half_open(build):
    fleet = build(StaticAddresses(("a:1", "b:1")))
    await settle(lambda: len(fleet.usable()) == 2)
    first, second = fleet.usable()
    first.breaker = Mock(state=BreakerState.HALF_OPEN)
    with first.counted():  # by who was shown there
        assert fleet.usable() == [second] and fleet.named(first.name) is first
    first.breaker = Mock(state=BreakerState.OPEN)
    assert fleet.named(first.name) is None and fleet.named(second.name) is second
    second.breaker = first.breaker
    assert fleet.named(first.name) is first
    assert fleet.named("nobody") is None and fleet.named("") is None


async def test_whoever_was_tried_is_tried_again_only_where_there_is_no_other(build):
    fleet = build(StaticAddresses(("a:1", "b:1")))
    await settle(lambda: len(fleet.usable()) == 2)
    first, second = fleet.pick("key")
    tried = AttemptedReplicas()
    tried.all.append(first)
    assert fleet.pick("key", tried) == [second]
    tried.all.append(second)
    assert fleet.pick("key", tried) == [first, second]
    tried.full.append(first)
    assert fleet.pick("key", tried) == [second]
    tried.full.append(second)
    with pytest.raises(DraftUnavailable):
        fleet.pick("key", tried)


async def test_a_single_address_is_not_watched(build, channels):
    fleet = build(StaticAddresses(("a:1",)))
    channels["a:1"].state = AWAY
    assert fleet.is_alone and fleet.usable() == [fleet.only]
    assert not [task for task in asyncio.all_tasks() if "draft" in task.get_name()]
    assert [each.is_healthy for each in fleet.statuses()] == [False]


@pytest.mark.parametrize("where", [("a:1",), ("a:1", "b:1")])
async def test_every_connection_is_kept_in_use_until_it_is_closed(build, channels, monkeypatch, where):
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.001)
    fleet = build(StaticAddresses(where))
    fleet.usable()
    await settle(lambda: all(channel.checks > 2 for channel in channels.values()))
    await fleet.aclose()
    assert all(channel.closed for channel in channels.values())


async def test_a_removed_replica_is_kept_in_use_until_its_last_call_ends(build, dns, channels, monkeypatch):
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.001)
    fleet = build(DnsName("draft", 1))
    await settle(lambda: len(fleet.usable()) == 2)
    leaving = next(each for each in fleet.usable() if each.address == "a:1")
    with leaving.counted():
        dns.append(("b:1",))
        await settle(lambda: addresses(fleet) == ["b:1"])
        checks = channels["a:1"].checks
        await settle(lambda: channels["a:1"].checks > checks + 2)
    await settle(lambda: channels["a:1"].closed)
    assert len(fleet._heartbeats) == 1


async def test_a_watch_that_fails_is_logged_and_starts_again(build, channels, monkeypatch, caplog):
    monkeypatch.setattr(fleet_module, "_RESTART_S", 0.01)
    fleet = build(StaticAddresses(("a:1", "b:1")))
    await settle(lambda: len(fleet.usable()) == 2)
    channels["a:1"].wait_for_state_change = Mock(side_effect=RuntimeError("defect"))
    channels["a:1"].move(AWAY)
    await settle(lambda: "watch draft a:1 failed; it starts again" in caplog.text)
    del channels["a:1"].wait_for_state_change
    channels["a:1"].model = "other"
    channels["a:1"].move(READY)
    await settle(lambda: [each.address for each in fleet.usable()] == ["b:1"] and fleet._replicas["a:1"].unused)


async def test_nothing_is_left_of_a_closed_one(build, channels):
    fleet = build(StaticAddresses(("a:1", "b:1")))
    await settle(lambda: len(fleet.usable()) == 2)
    await fleet.aclose()
    assert not [task for task in asyncio.all_tasks() if "draft" in task.get_name() or "heart" in task.get_name()]
    assert all(channel.closed for channel in channels.values())
