"""Draft, target and orchestrator as processes, without proxies between them: for what counts time, memory and tokens.

The draft is the real service over a tiny random model, the target is `large_target`, and they share a tokenizer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

import presift
from presift.cli.stack.process import ServiceProcess
from presift.core.fingerprint import fingerprint

from . import watched

START_S, STOP_S, ANSWER_S = 240.0, 20.0, 30.0
# The draft's context in tokens: that of the tiny model.
DRAFT_CONTEXT = 4096
# The target's: a bit for each layer, head and token of the longest prompt makes the largest KV mask.
LAYERS, KV_HEADS = 16, 8
# So many characters "a" are one token; of any other text each byte is one.
RUN_CHARACTERS = 16
# The token of a single "a".
LETTER = sorted(pre_tokenizers.ByteLevel.alphabet()).index("a")
_TEMPLATE = (
    "{% if note %}{{ note }}{% endif %}"
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% for call in message.tool_calls %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
    "</{{ message.role }}>{% endfor %}<assistant>"
)
_FLAGS = {
    "compress-above-tokens": 100,
    "capacity": 48,
    "window": 8,
    "kernel": 3,
    "neighbors": 4,
    "start-layer": 0,
    "guard-share": 0,
}


@dataclass
class BareStack:
    """The processes by name: draft, target, orchestrator."""

    logs: Path
    processes: dict[str, ServiceProcess] = field(default_factory=dict)

    @property
    def tokens_file(self) -> Path:
        """Where the target writes the tokens of each salt, as JSON."""
        return self.logs / "tokens.json"

    @property
    def http_address(self) -> str:
        return self.processes["orchestrator"].http_address

    def address(self, name: str) -> str:
        return self.processes[name].address

    def start(self, name: str, module: str, flags: Sequence[str]) -> None:
        """Start a service under `watched` and wait until it is ready."""
        environment = {
            "PYTHONPATH": os.pathsep.join(map(str, (*_PLACES, Path(presift.__file__).parents[1]))),
            "OMP_WAIT_POLICY": "passive",
            "TOKENIZERS_PARALLELISM": "false",
            watched.FILE_VARIABLE: str(self._tasks_file(name)),
        }
        log = self.logs / f"{name}.log"
        self.processes[name] = ServiceProcess(name, "watched", [module, *flags], log, environment)
        self.processes[name].wait_ready(START_S)

    def take_stall_s(self, name: str) -> float:
        """The longest stall of its event loop since the last call, in seconds of processor time."""
        return float(self._told(name)[1])

    def frozen_objects(self, name: str) -> int:
        """How many objects its garbage collections leave out."""
        return int(self._told(name)[2])

    def _told(self, name: str) -> list[str]:
        """What `watched` says of the process now."""
        path = self._tasks_file(name)
        before = path.read_text() if path.exists() else ""
        os.kill(self.processes[name].pid, signal.SIGUSR1)
        until_s = time.monotonic() + ANSWER_S
        while not path.exists() or path.read_text() == before:
            assert time.monotonic() < until_s, f"{name} does not answer"
            time.sleep(0.005)
        return path.read_text().split()

    def reset_peak(self, name: str) -> int:
        """Forget the peak of its memory, and return what it holds now, in bytes."""
        Path(f"/proc/{self.processes[name].pid}/clear_refs").write_text("5")
        return self.peak_bytes(name)

    def peak_bytes(self, name: str) -> int:
        """The peak of its memory since `reset_peak`, as the kernel measured it."""
        status = Path(f"/proc/{self.processes[name].pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def errors(self) -> list[str]:
        """Lines of the logs that tell of a defect."""
        texts = [process.log.read_text(errors="replace") for process in self.processes.values()]
        return [line for text in texts for line in text.splitlines() if " ERROR " in line]

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            process.stop(STOP_S)

    def _tasks_file(self, name: str) -> Path:
        return self.logs / f"{name}.tasks"


_PLACES = (Path(__file__).parent, Path(__file__).parents[1])


@contextmanager
def bare_stack(
    model: Path, logs: Path, *, target_flags: Sequence[str] = (), orchestrator_flags: Sequence[str] = ()
) -> Iterator[BareStack]:
    """A running stack over a model folder of `with_tokenizer`. To be used from the main thread."""
    stack, listen = BareStack(logs), "--listen=127.0.0.1:0"
    try:
        known = fingerprint((model / "tokenizer.json").read_bytes())
        shape = [f"--layers={LAYERS}", f"--kv-heads={KV_HEADS}"]
        stack.start("target", "large_target", [known, str(stack.tokens_file), *shape, *target_flags])
        stack.start("draft", "presift.draft", [f"--model={model}", "--dtype=float32", "--threads=1", listen])
        addresses = [f"--{name}-address={stack.address(name)}" for name in ("draft", "target")]
        flags = [*addresses, f"--tokenizer={model}", "--no-calibrate", listen, "--http-listen=127.0.0.1:0"]
        flags += [f"--{name}={value}" for name, value in _FLAGS.items()]
        stack.start("orchestrator", "presift.orchestrator", [*flags, *orchestrator_flags])
        yield stack
    finally:
        stack.stop()


def with_tokenizer(model: Path, folder: Path) -> Path:
    """A copy of a tiny model with a tokenizer that makes one token of a run of letters, and with a chat template."""
    shutil.copytree(model, folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    runs = ["a" * 2**power for power in range(1, RUN_CHARACTERS.bit_length())]
    vocabulary = {each: number for number, each in enumerate([*alphabet, *runs])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(run[: len(run) // 2],) * 2 for run in runs]))
    pieces = pre_tokenizers.Split(Regex(f"a{{1,{RUN_CHARACTERS}}}"), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pieces, to_bytes])
    backend.decoder = decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
