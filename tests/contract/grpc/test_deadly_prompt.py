"""A prompt that kills its replica: one more is tried, then the prompt is refused; others are answered."""

import asyncio
import subprocess
import sys

import grpc
import numpy as np
import pytest

from presift.core.errors import InternalError, TargetUnavailable
from presift.core.generation import Sampling
from presift.core.policies import SpecPc
from presift.orchestrator.backends.draft_client import DraftClient
from presift.orchestrator.backends.services import draft_service
from presift.orchestrator.backends.target_client import TargetClient
from presift.orchestrator.domain.ports import DraftRequest, ReplicaRef, TargetRequest
from presift.orchestrator.estimation.prefix_index import PrefixIndex
from presift.rpc.deadline import Deadline
from presift.rpc.pool.quarantine import has_died

from ...faults.proxy import FaultProxy

DEADLY, HARMLESS = (np.array(ids, np.uint32) for ids in ([6, 6, 6], [1, 2, 3]))
DIES = """
import asyncio, grpc, os

async def die(request, context):
    os._exit(1)

async def refuse(request, context):
    await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

async def main():
    server = grpc.aio.server()
    methods = {"Die": grpc.unary_unary_rpc_method_handler(die), "Refuse": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", methods),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


class Deadly:
    """Faults of a fake: the deadly prompt cuts its connections."""

    def __init__(self, fake, proxy):
        self.fake, self.cut, self.survives = fake, proxy.cut, False

    def __bool__(self):
        return not self.survives and list(self.fake.calls[-1].token_ids) == DEADLY.tolist()

    def popleft(self):
        return self.die

    async def die(self, context):
        self.cut()
        await asyncio.Event().wait()


async def behind_proxies(fakes, ports, proxies):
    """The addresses of the fakes' proxies."""
    for fake, port in zip(fakes, ports, strict=True):
        proxies.append(FaultProxy(f"127.0.0.1:{port}"))
        await proxies[-1].start()
        fake.faults = Deadly(fake, proxies[-1])
    return ",".join(proxy.address for proxy in proxies[-len(ports) :])


@pytest.fixture
async def fleet(open_stack):
    """Five targets and five drafts."""
    stack, proxies = await open_stack(targets=5, drafts=5), []
    stack.client = TargetClient(await behind_proxies(stack.targets, stack.target_ports, proxies), 2**20)
    drafts = await behind_proxies(stack.drafts, stack.draft_ports, proxies)
    stack.scorer = DraftClient(drafts, 2**20, PrefixIndex())
    for pool in (stack.client._pool, stack.scorer._pool):
        await pool.info()
        await stack.settle(lambda pool=pool: len(pool.usable()) == 5)
    yield stack
    for closable in (stack.client, stack.scorer, *proxies):
        await closable.aclose()


async def answer(fleet, token_ids):
    call = fleet.client.generate(TargetRequest(token_ids, Sampling(max_new_tokens=2), ""), Deadline.within(20.0))
    return [event async for event in call.events()]


async def score(fleet, token_ids):
    return await fleet.scorer.score(
        DraftRequest(token_ids, SpecPc(capacity=2, window=1), (), ""), Deadline.within(20.0)
    )


def killed(fakes):
    return sum(list(call.token_ids) == DEADLY.tolist() for fake in fakes for call in fake.calls)


@pytest.mark.parametrize(("ask", "role"), [(answer, "targets"), (score, "drafts")])
async def test_two_replicas_die_and_no_more(fleet, ask, role):
    fakes = getattr(fleet, role)
    for _ in range(4):  # a caller who tries again and again
        with pytest.raises(InternalError, match="this prompt"):
            await ask(fleet, DEADLY)
    assert killed(fakes) == 2
    assert await ask(fleet, HARMLESS)


async def test_a_prefill_that_kills_counts_too(fleet):
    for target in fleet.targets:
        target.prefill_faults.extend([target.faults.die] * 9)
    for _ in range(4):
        with pytest.raises((TargetUnavailable, InternalError)):
            await fleet.client.prefill(DEADLY, "")
    assert sum(len(target.prefill_faults) for target in fleet.targets) == 5 * 9 - 2


async def test_a_death_amid_the_answer_counts(fleet):
    for target in fleet.targets:
        target.faults.survives, target.pause_after = True, 1
    for _ in range(2):
        call = fleet.client.generate(TargetRequest(DEADLY, Sampling(max_new_tokens=2), ""), Deadline.within(20.0))
        events = call.events()
        await anext(events)
        busy = next(target for target in fleet.targets if target.running)
        busy.faults.cut()
        with pytest.raises(TargetUnavailable):
            await anext(events)
    with pytest.raises(InternalError, match="this prompt"):
        await answer(fleet, DEADLY)


async def test_equal_prompts_that_die_together_at_one_replica_count_once(fleet):
    """`n` answers, for example: one replica dies, and the next one answers them all."""
    for target in fleet.targets:
        target.faults.survives, target.pause_after = True, 1
    replica = ReplicaRef(fleet.client._pool.usable()[0].name, "")
    together = [
        fleet.client.generate(
            TargetRequest(DEADLY, Sampling(max_new_tokens=2), ""), Deadline.within(20.0), replica=replica
        ).events()
        for _ in range(3)
    ]
    for events in together:
        await anext(events)
    busy = [target for target in fleet.targets if target.running]
    assert len(busy) == 1
    busy[0].faults.cut()
    for events in together:
        with pytest.raises(TargetUnavailable):
            await anext(events)
    for target in fleet.targets:
        target.pause_after = None
    assert await answer(fleet, DEADLY)


async def test_an_answer_clears_the_suspicion(fleet):
    quarantine = fleet.client._quarantine
    for target in fleet.targets:
        target.faults.survives = True
    fleet.targets[0].faults.survives = False
    for _ in range(3):
        assert await answer(fleet, DEADLY)
        assert not quarantine._deaths


async def test_only_a_connection_that_broke_is_a_death():
    process = subprocess.Popen([sys.executable, "-c", DIES], stdout=subprocess.PIPE, text=True)
    port = await asyncio.to_thread(process.stdout.readline)
    found = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port.strip()}") as channel:
        for method in ("Refuse", "Die"):
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await channel.unary_unary(f"/s/{method}")(b"")
            assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
            found.append(has_died(failure.value))
        await asyncio.to_thread(process.wait)
        async with grpc.aio.insecure_channel("127.0.0.1:1") as nobody:
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await nobody.unary_unary("/s/Refuse")(b"")
            found.append(has_died(failure.value))
    assert found == [False, True, False]


@pytest.mark.parametrize("is_alone", [None, True, False])
@pytest.mark.parametrize("received_bytes", [0, 24])
async def test_a_proxy_that_has_no_replica_is_no_death(received_bytes, is_alone):
    """It accepts a connection and closes it, before or after the client's preface. gRPC's words for it depend on the
    channel: one with gRPC's defaults (None), or one of a pool of one or of several addresses."""

    async def close(reader, writer):
        await reader.read(received_bytes)
        writer.close()

    proxy = await asyncio.start_server(close, "127.0.0.1", 0)
    address = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    plain = grpc.aio.insecure_channel(address)
    async with proxy, plain if is_alone is None else draft_service(2**20).connect(address, is_alone)[0] as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.unary_unary("/s/Refuse")(b"", timeout=10.0)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not has_died(failure.value)
