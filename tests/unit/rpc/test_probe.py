"""The health probe against real servers: what it says, by which exit code, and what it does not load."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

import presift
from presift.rpc.probe import main
from presift.rpc.server.server import GrpcServer, ServerOptions

from ...contract.fakes.authority import Authority


@pytest.fixture
async def start():
    """(serving, options) -> its address; all are stopped at the end."""
    servers = []

    async def start(serving=True, **options):
        server = GrpcServer(ServerOptions("127.0.0.1:0", **options), ["presift.v1.Any"], ["presift.v1.Any/part"])
        servers.append(server)
        port = await server.start()
        await server.set_serving(serving, ["presift.v1.Any/part"])
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        await server.grpc.stop(0)


async def probe(*arguments):
    return await asyncio.to_thread(main, list(arguments))


async def test_zero_while_it_serves(start, capsys):
    address = await start()
    assert await probe(address) == 0
    assert capsys.readouterr().out == f"{address}: SERVING\n"


async def test_one_while_it_does_not(start, capsys):
    assert await probe(await start(serving=False)) == 1
    assert "NOT_SERVING" in capsys.readouterr().out


async def test_a_part_of_a_service(start):
    address = await start()
    assert await probe(address, "--service", "presift.v1.Any") == 0
    assert await probe(address, "--service", "presift.v1.Any/part") == 1
    assert await probe(address, "--service", "nobody") == 1


async def test_one_where_nobody_listens(capsys):
    assert await probe("127.0.0.1:1") == 1
    assert "UNAVAILABLE" in capsys.readouterr().out


async def test_a_server_that_does_not_answer_is_not_waited_for(capsys):
    async with await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        assert await probe(f"127.0.0.1:{port}", "--timeout-s", "0.3") == 1
    assert "DEADLINE_EXCEEDED" in capsys.readouterr().out


async def test_mutual_tls(start, tmp_path, capsys):
    pair = Authority(tmp_path).pair("draft")
    address = await start(tls=pair.files())
    files = ["--ca", str(pair.ca), "--cert", str(pair.cert), "--key", str(pair.key)]
    assert await probe(address, *files, "--name", "draft") == 0
    assert await probe(address, *files, "--name", "target") == 1
    assert await probe(address, "--ca", str(pair.ca), "--name", "draft") == 1
    assert await probe(address) == 1
    assert await probe(address, "--ca", str(tmp_path / "none.pem")) == 1
    assert "none.pem: No such file" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--cert", "c.pem", "--key", "k.pem"], ["--name", "draft"]])
def test_what_goes_with_tls_is_not_passed_over(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["127.0.0.1:1", *flags])
    assert "--ca" in capsys.readouterr().err


def test_it_loads_little():
    """It runs every few seconds for as long as a container lives."""
    code = "import json, sys, presift.rpc.probe; print(json.dumps(sorted(sys.modules)))"
    environment = {"PYTHONPATH": str(Path(presift.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"numpy", "pydantic", "opentelemetry", "torch", "transformers", "redis"}
