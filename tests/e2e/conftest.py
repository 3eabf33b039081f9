"""What the end-to-end tests share: SGLang engines over tiny random models, and one stack with a real model."""

from __future__ import annotations

import asyncio
import os
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from presift.cli.stack.stack import LocalStack, Observability, StackOptions
from presift.core.answer import Finished
from presift.core.generation import EngineLoad, Sampling
from presift.core.kv_plan import KvPlan
from presift.core.policies import Pool, Reduction, SpecKv
from presift.models.folder import resolve
from presift.target.engine import GenerateRequest
from presift.target.sglang.arguments import SglangOptions
from presift.target.sglang.engine import SglangEngine

from .collector import Collector, collecting
from .forked_engines import forked
from .ports import free_ports

VOCABULARY = 512
POOL_TOKENS = 8192
# Engines of one worker. Each has two processes, of 1 to 2 GiB together; CI has two workers and 24 GiB.
MOST_ENGINES = 3
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Seen only where this folder is named: `pytest tests/e2e/spec_kv --engine tensor_parallel=2`."""
    parser.addoption(
        "--engine",
        action="append",
        default=[],
        type=_engine_option,
        metavar="NAME=NUMBER",
        help="an option of the engines over tiny models, where a test does not set it",
    )


def _engine_option(words: str) -> tuple[str, int]:
    name, _, value = words.partition("=")
    return name, int(value)


@dataclass
class Driver:
    """An engine, and the few things that tests do with it."""

    engine: SglangEngine

    async def answer(
        self, token_ids: list[int], plan: KvPlan | None = None, salt: str = "", **sampling: Any
    ) -> tuple[list[int], Finished]:
        """The tokens of an answer and how it ended; greedy, past EOS."""
        wanted = Sampling(**{"max_new_tokens": 8, "ignore_eos": True} | sampling)
        request = GenerateRequest(np.array(token_ids, dtype=np.uint32), wanted, salt, plan)
        tokens: list[int] = []
        async with aclosing(self.engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return tokens, event
                tokens.extend(event.token_ids)
        raise AssertionError("the stream has no end")

    async def check_held(self, request: GenerateRequest, all_slots: int, entry: int, after: int = 0) -> int:
        """Compare what a lone request holds between two steps with its entry and its answer, again and again after so
        many tokens. How often it was done.
        """
        generated = checked = 0

        async def read() -> None:
            nonlocal generated
            async with aclosing(self.engine.generate(request)) as events:
                async for event in events:
                    if not isinstance(event, Finished):
                        generated += len(event.token_ids)

        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(read())
            while not reading.done():
                async with self._paused():
                    state = await self.engine.plugin_state()
                    held = all_slots - state["free_slots"] - state["evictable_slots"]
                    if held and not (state["runs"] or state["renewing"]) and generated > after:
                        # Tokens come by way of the detokenizer, later than the state. The newest has no KV until the
                        # next step, which may be under way.
                        async with asyncio.timeout(30):
                            while entry + generated < held - 1:
                                await asyncio.sleep(0)
                        assert entry + generated <= held + 1
                        checked += 1
                await asyncio.sleep(0.001)
        return checked

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """The scheduler does nothing but answer messages."""
        from sglang.srt.managers.io_struct import ContinueGenerationReqInput, PauseGenerationReqInput

        manager = self.engine._manager
        await manager.pause_generation(PauseGenerationReqInput(mode="in_place"))
        try:
            yield
        finally:
            await manager.continue_generation(ContinueGenerationReqInput())

    async def idle(self) -> dict[str, Any]:
        """The plugin's counts once nothing runs and nothing waits: no side state may be left then."""
        async with asyncio.timeout(30):
            while _is_busy(self.engine.load()) or self.engine.running_requests:
                await asyncio.sleep(0.02)
        state = await self.engine.plugin_state()
        left = {name: state[name] for name in ("runs", "waiting", "missing", "renewing", "leases", "leased_tokens")}
        assert not any(left.values()), left
        assert state["locked_slots"] == 0
        return state

    async def empty(self) -> int:
        """The number of free slots once the radix cache is empty: all of them."""
        await self.idle()
        assert await self.engine.flush()
        return int((await self.idle())["free_slots"])


def _is_busy(load: EngineLoad | None) -> bool:
    return load is None or any((load.running, load.waiting, load.held_kv_tokens))


@pytest.fixture(scope="session")
def prompt() -> Callable[[int, int], list[int]]:
    """(seed, length) -> token ids."""
    return lambda seed, tokens: np.random.default_rng(seed).integers(0, VOCABULARY, tokens).tolist()


@pytest.fixture(scope="session")
def policy_of() -> Callable[[dict[str, Any], int], SpecKv]:
    """(the authors' config, lookahead tokens) -> our policy."""
    pools = {"max": Pool.MAX, "mean": Pool.MEAN, "avg": Pool.MEAN, None: Pool.NONE}

    def build(config: dict[str, Any], lookahead_tokens: int) -> SpecKv:
        return SpecKv(
            capacity=config["max_capacity_prompt"],
            window=config["window_size"],
            pool=pools[config["pool_type"]],
            kernel=config["kernel_size"],
            reduction=Reduction.MAX if config["reduction_type"] == "max" else Reduction.SUM,
            lookahead_tokens=lookahead_tokens,
        )

    return build


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def start(tiny_model: Callable[[str], Path], request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Any]]:
    """(model, **options) -> a Driver of a started engine; the same arguments share one. All are stopped at the end, and
    before another starts the one that was not used for longest, if there are MOST_ENGINES.
    """
    everywhere = dict(request.config.getoption("--engine", default=[]))
    cores_are_divided = "SGLANG_CPU_OMP_THREADS_BIND" in os.environ
    running: dict[tuple[Any, ...], Driver] = {}
    last_used: dict[tuple[Any, ...], int] = {}

    async def get(name: str = "tinyq", **options: Any) -> Driver:
        chosen = {"kv_pool_tokens": POOL_TOKENS, "prefill_chunk_tokens": 128, "threads": 1} | everywhere | options
        key = (name, *sorted(chosen.items()))
        if key not in running:
            if len(running) == MOST_ENGINES:
                await running.pop(min(running, key=last_used.__getitem__)).engine.stop()
            # Each engine divides the cores among its own ranks, unless somebody has divided them for all.
            if not cores_are_divided:
                os.environ.pop("SGLANG_CPU_OMP_THREADS_BIND", None)
            sglang = SglangOptions(resolve(str(tiny_model(name))), dtype="float32", **chosen)
            running[key] = Driver(SglangEngine(sglang))
            with forked(sglang) if sglang.tensor_parallel * sglang.data_parallel == 1 else nullcontext():
                await running[key].engine.start()
        last_used[key] = max(last_used.values(), default=0) + 1
        return running[key]

    yield get
    # The last one first: the handler of failing children is the last one's.
    for driver in reversed(running.values()):
        await driver.engine.stop()


@dataclass(frozen=True)
class RealStack:
    """A running stack, and what it reports."""

    stack: LocalStack
    collector: Collector
    observability: Observability

    def scraped(self, kind: str) -> dict[str, list[tuple[dict[str, str], float, object]]]:
        """Sample name -> (labels, value, exemplar) of a service."""
        place = [service.name for service in self.stack.services].index(kind)
        url = f"http://{self.observability.address(place)}/metrics"
        request = urllib.request.Request(url, headers={"Accept": OPENMETRICS})
        with urllib.request.urlopen(request, timeout=60) as reply:
            families = text_string_to_metric_families(reply.read().decode())
        found: dict[str, list[tuple[dict[str, str], float, object]]] = {}
        for family in families:
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value, sample.exemplar))
        return found


@pytest.fixture(scope="session")
def real_stack(presift_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealStack]:
    """SmolLM2 as draft and target, SGLang, Valkey, a collector of traces; the guard samples every request that it may.

    Tests that must not be sampled set limits below these defaults. Afterwards no process may be left.
    """
    model = str(presift_home / "models" / "smollm2-135m-instruct")
    flags = ["--compress-above-tokens=150", "--capacity=96", "--kv-capacity=64", "--cascade-capacity=160"]
    # A slow machine must not turn a cache look-up into a miss.
    flags += ["--guard-share=1", "--guard-max-new-tokens=4", "--cache-timeout-s=5"]
    with collecting() as (collector, endpoint):
        observability = Observability(free_ports(3), endpoint)
        options = StackOptions(
            draft=model,
            target=model,
            tokenizer=model,
            logs=tmp_path_factory.mktemp("logs"),
            listen="127.0.0.1:0",
            orchestrator_flags=flags,
            environment={f"PRESIFT_{role}_LOG_FORMAT": "json" for role in ("DRAFT", "TARGET", "ORCHESTRATOR")}
            | {"OTEL_BSP_SCHEDULE_DELAY": "500"},
            observability=observability,
        )
        others = psutil.Process().children(recursive=True)  # engines of other tests
        with LocalStack(options, print) as stack:
            processes = [each for each in psutil.Process().children(recursive=True) if each not in others]
            assert processes
            yield RealStack(stack, collector, observability)
        # Python's own helper of a child process ends a moment after it.
        _, left = psutil.wait_procs(processes, timeout=5)
        assert left == []
