"""`python -m presift.orchestrator --policy-file`: a real process; bad files, SIGHUP, what is in force."""

import asyncio
import hashlib
import os
import re
import signal
import sys
import time
from datetime import datetime

import pytest

from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.v1 import draft_pb2_grpc, target_pb2_grpc
from presift_client import AsyncClient

from ..fakes.services import FakeDraft, FakeTarget, model
from ..fakes.stack import ALL_ROUTES, LOCAL

pytestmark = pytest.mark.processes

LONG = list(range(100, 400))
CONTEXT = {"context_tokens": 1000}
POLICY = "compress_above_tokens: 50\nlookahead_tokens: 1\ncapacity: 64\ntenants:\n  acme:\n    capacity: 80\n"


class Orchestrator:
    """A process; what it logs is in `log`."""

    def __init__(self, process, log):
        self.process = process
        self.log = log

    async def ready(self):
        line = (await self.process.stdout.readline()).decode()
        found = re.match(r"presift orchestrator ready on (\S+): target", line)
        assert found, line + self.log.read_text()
        return found.group(1)

    async def logged(self, text, times=1):
        async with asyncio.timeout(30):
            while self.log.read_text().count(text) < times:
                await asyncio.sleep(0.02)


@pytest.fixture
async def start(tmp_path):
    """flags -> an orchestrator between fakes; killed at the end."""
    servers, started = [], []
    draft, target = FakeDraft(model("draft", **CONTEXT)), FakeTarget(model("target", **CONTEXT), ALL_ROUTES)
    for add, service in (
        (draft_pb2_grpc.add_DraftServiceServicer_to_server, draft),
        (target_pb2_grpc.add_TargetServiceServicer_to_server, target),
    ):
        servers.append(GrpcServer(ServerOptions(LOCAL), []))
        add(service, servers[-1].grpc)
    ports = [await server.start() for server in servers]

    async def start(*flags):
        addresses = ["--draft-address", f"127.0.0.1:{ports[0]}", "--target-address", f"127.0.0.1:{ports[1]}"]
        command = [
            sys.executable,
            "-m",
            "presift.orchestrator",
            "--listen",
            LOCAL,
            *addresses,
            *flags,
        ]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        log = tmp_path / "orchestrator.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=stderr, env=environment
            )
        started.append(Orchestrator(process, log))
        return started[-1]

    yield start
    for each in started:
        if each.process.returncode is None:
            each.process.kill()
        await each.process.wait()
    for server in servers:
        await server.grpc.stop(0)


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


async def test_a_bad_file_ends_the_start_and_names_its_line(start, policy):
    policy.write_text(f"{POLICY}    kv_capacity: 7\n")
    orchestrator = await start("--policy-file", str(policy))
    assert await orchestrator.process.wait() == 1
    log = orchestrator.log.read_text()
    assert "policy.yaml:7: tenants.acme.kv_capacity: must be > window (32) (it is 7)" in log
    assert "Traceback" not in log
    assert await orchestrator.process.stdout.read() == b""


async def test_sighup_takes_a_good_file_and_leaves_a_bad_one(start, policy):
    before = time.time()
    orchestrator = await start("--policy-file", str(policy))
    address = await orchestrator.ready()

    async def kept():
        # The route is named: AUTO reads the whole prompt where the draft was measured to be slower than the target.
        counts = []
        for tenant in (None, "acme"):
            async with AsyncClient(address, tenant=tenant) as client:
                answer = await client.generate(token_ids=LONG, max_new_tokens=2, route="spec_pc")
                counts.append(answer.decision.kept_tokens)
        return counts

    async def info():
        async with AsyncClient(address) as client:
            return await client.info()

    first = await info()
    assert await kept() == [64, 80]
    assert first.policy_file.digest == hashlib.sha256(POLICY.encode()).hexdigest()
    assert before - 1 <= datetime.fromisoformat(first.policy_file.loaded_at).timestamp() <= time.time() + 1
    assert first.compress_above_tokens == 50

    policy.write_text("capacity: 90\nkv_capacity: [\n")
    orchestrator.process.send_signal(signal.SIGHUP)
    await orchestrator.logged("policy.yaml:3: YAML: ")
    assert await kept() == [64, 80] and (await info()).policy_file == first.policy_file

    policy.write_text(POLICY.replace("80", "96").replace("64", "72"))
    orchestrator.process.send_signal(signal.SIGHUP)
    digest = hashlib.sha256(policy.read_bytes()).hexdigest()
    await orchestrator.logged(f"policy file in use: sha256 {digest}")
    assert await kept() == [72, 96] and (await info()).policy_file.digest == digest

    policy.unlink()
    orchestrator.process.send_signal(signal.SIGHUP)
    await orchestrator.logged("No such file")
    assert await kept() == [72, 96]
    orchestrator.process.send_signal(signal.SIGTERM)
    assert await orchestrator.process.wait() == 0
    assert "acme" not in orchestrator.log.read_text()


async def test_without_a_file_sighup_does_what_it_always_does(start):
    held = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have started us with it ignored
    try:
        orchestrator = await start()
    finally:
        signal.signal(signal.SIGHUP, held)
    address = await orchestrator.ready()
    async with AsyncClient(address, tenant="acme") as client:
        assert (await client.info()).policy_file is None
        assert (await client.generate(token_ids=LONG, max_new_tokens=2)).decision.route == "full"
    orchestrator.process.send_signal(signal.SIGHUP)
    assert await orchestrator.process.wait() == -signal.SIGHUP
