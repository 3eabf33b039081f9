"""`python -m tests.clients.stack TOKENIZER_FOLDER`: a presift whose target is the scripted engine.

It runs until stdin ends, or until SIGTERM.
The orchestrator is a process of its own. Behind it, in this process and over gRPC, are the real target service and a
fake draft. Prints the URL of the HTTP API.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from presift.core.fingerprint import fingerprint
from presift.core.plan import ModelInfo
from presift.models.torchvision_ops import declare_missing
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.target.admission import Admission
from presift.target.servicer import TargetServicer
from presift.v1 import draft_pb2_grpc, target_pb2_grpc

from ..contract.fakes.services import FakeDraft
from ..contract.fakes.services import model as wire_model

MODEL, CONTEXT_TOKENS = "scripted", 16_384
_TEMPLATE = Path(__file__).parent / "hermes.jinja"
_EOS = "<|im_end|>"


def main() -> int:
    declare_missing()  # before SGLang's parsers are loaded
    from .scripted_engine import ScriptedEngine

    with tempfile.TemporaryDirectory() as made:
        folder = with_template(Path(sys.argv[1]), Path(made))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        model = ModelInfo(
            id=MODEL,
            revision="1",
            tokenizer_fingerprint=fingerprint((folder / "tokenizer.json").read_bytes()),
            context_tokens=CONTEXT_TOKENS,
            layers=4,
            kv_heads=2,
            vocabulary_size=tokenizer.get_vocab_size(),
        )
        eos = tokenizer.token_to_id(_EOS)
        with suppress(asyncio.CancelledError):
            asyncio.run(serve(lambda: ScriptedEngine(tokenizer, model, eos), model, folder))
    return 0


def with_template(tokenizer: Path, made: Path) -> Path:
    """A copy of a tokenizer whose chat template knows tools."""
    shutil.copy(tokenizer / "tokenizer.json", made)
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    config["chat_template"] = _TEMPLATE.read_text().removesuffix("\n")
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    return made


async def serve(make_engine: Any, model: ModelInfo, folder: Path) -> None:
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    target = TargetServicer(Admission(max_running=16, max_waiting=256))
    target.use(make_engine())
    same = {"tokenizer_fingerprint": model.tokenizer_fingerprint, "vocabulary_size": model.vocabulary_size}
    draft = FakeDraft(wire_model("draft", context_tokens=CONTEXT_TOKENS, **same))
    async with AsyncExitStack() as running:
        flags = [f"--tokenizer={folder}"]
        for name, add, service in (
            ("draft", draft_pb2_grpc.add_DraftServiceServicer_to_server, draft),
            ("target", target_pb2_grpc.add_TargetServiceServicer_to_server, target),
        ):
            server = GrpcServer(ServerOptions("127.0.0.1:0"), [])
            add(service, server.grpc)
            flags.append(f"--{name}-address=127.0.0.1:{await server.start()}")
            running.push_async_callback(server.grpc.stop, 0)
        process = await start_orchestrator(flags)
        try:
            print(f"http://{await _http_address(process)}", flush=True)
            await _end_of_stdin()
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _end_of_stdin() -> None:
    """Not in an executor: the end of the process would wait for its thread."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def read() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read, daemon=True).start()
    await ended.wait()


async def start_orchestrator(flags: list[str]) -> asyncio.subprocess.Process:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    listens = ("--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0")
    command = [sys.executable, "-m", "presift.orchestrator", "--no-calibrate", *listens, *flags]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)


async def _http_address(process: asyncio.subprocess.Process) -> str:
    """Waits until the orchestrator is ready."""
    assert process.stdout is not None
    address = ""
    while line := (await process.stdout.readline()).decode():
        _, takes, found = line.partition(" takes HTTP on ")
        address = found.strip() if takes else address
        if " ready on " in line:
            return address
    raise SystemExit("the orchestrator did not start")


if __name__ == "__main__":
    sys.exit(main())
