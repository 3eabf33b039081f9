"""Where a hook is missing or does not work, what needs it is not served, with the reason, and everything else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from presift.core.answer import Finished
from presift.core.errors import InvalidRequest, RouteUnsupported, TargetUnavailable
from presift.core.generation import Sampling
from presift.core.plan import Route
from presift.core.policies import KV_DROPPING_ROUTES, KV_KEEPING_ROUTES
from presift.models.folder import resolve
from presift.target.admission import check_fits
from presift.target.engine import GenerateRequest
from presift.target.sglang.arguments import SglangOptions
from presift.target.sglang.engine import SglangEngine
from presift.target.sglang_plugin import sglang_names

from ..forked_engines import forked

pytestmark = pytest.mark.asyncio(loop_scope="session")

# A scheduler process in which a name is gone that the plugin hooks, as in another version of SGLang.
RENAMED = """
from presift.target.sglang import processes

def run_scheduler(*args, **kwargs):
    import sglang.srt.managers.scheduler
    from sglang.srt.managers.schedule_policy import PrefillAdder
    # SGLang calls it for prompts of several chunks only.
    PrefillAdder.renamed = PrefillAdder.add_chunked_req
    del PrefillAdder.add_chunked_req
    processes.run_scheduler(*args, **kwargs)
"""

# A scheduler process that fails while the self-check is running.
FAILING = """
from presift.target.sglang import processes

def run_scheduler(*args, **kwargs):
    from presift.target.sglang_plugin.hooks import Plugin

    def fail(*_):
        raise RuntimeError("planted")

    Plugin.around_get_new_batch_prefill = fail
    processes.run_scheduler(*args, **kwargs)
"""

# A scheduler process that copies the KV of the first tokens, whatever was selected.
WRONG_KV = """
from presift.target.sglang import processes

def run_scheduler(*args, **kwargs):
    from presift.target.sglang_plugin import entry_pins
    copy = entry_pins._copy
    entry_pins._copy = lambda buffer, kept, source, slots: copy(buffer, kept * 0, source, slots)
    processes.run_scheduler(*args, **kwargs)
"""

# A scheduler process that leaves positions as SGLang counts them, by the KV that is held: always, or in decode steps.
UNSHIFTED = """
from presift.target.sglang import processes

def run_scheduler(*args, **kwargs):
    from presift.target.sglang_plugin import attention
    per_token = attention._per_token

    def unshifted(shifts, forward, batch):
        return per_token(shifts, forward, batch) * (0 if {condition} else 1)

    attention._per_token = unshifted
    processes.run_scheduler(*args, **kwargs)
"""

# A scheduler process in which everything is aborted while the first three requests of the self-check are queued.
ABORTED = """
from presift.target.sglang import processes

def run_scheduler(*args, **kwargs):
    from sglang.srt.managers.io_struct import AbortReq
    from presift.target.sglang_plugin.self_check import SelfCheck
    run, asked = SelfCheck._run, []

    def run_and_abort(check, request):
        run(check, request)
        asked.append(request)
        if len(asked) <= 3:
            check._scheduler.abort_request(AbortReq(abort_all=True))

    SelfCheck._run = run_and_abort
    processes.run_scheduler(*args, **kwargs)
"""


# A scheduler process whose SGLang has another name for a function of its sampler.
RENAMED_SAMPLER = """
from presift.target.sglang import processes

def run_scheduler(*args, **kwargs):
    from presift.target.sglang_plugin import sglang_names
    sglang_names._CHANGES[sglang_names.TESTED[0]]["around_sample_from_probs"] = "layers.sampler.Sampler.gone"
    processes.run_scheduler(*args, **kwargs)
"""


@asynccontextmanager
async def engine_of(folder: Path, pool_tokens: int = 2048, *, forks: bool = True) -> AsyncIterator[SglangEngine]:
    options = SglangOptions(resolve(str(folder)), dtype="float32", kv_pool_tokens=pool_tokens, threads=1)
    engine = SglangEngine(options)
    try:
        with forked(options) if forks else nullcontext():
            await engine.start()
        yield engine
    finally:
        await engine.stop()


def asking(plan: Any = None, tokens: int = 4, **sampling: Any) -> GenerateRequest:
    wanted = Sampling(max_new_tokens=tokens, ignore_eos=True, **sampling)
    return GenerateRequest(np.arange(200, dtype=np.uint32), wanted, "", plan)


async def answer(engine: SglangEngine, plan: Any = None, tokens: int = 4, **sampling: Any) -> Finished:
    request = asking(plan, tokens, **sampling)
    events = [event async for event in engine.generate(request)]
    assert isinstance(events[-1], Finished)
    return events[-1]


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (RENAMED, "add_chunked_req"),
        (WRONG_KV, "with all KV kept, the answer differs"),
        (UNSHIFTED.format(condition="True"), "past dropped KV are at wrong positions"),
        (UNSHIFTED.format(condition="forward.forward_mode.is_decode()"), "past dropped KV are at wrong positions"),
    ],
    ids=["renamed", "wrong", "unshifted", "unshifted-decode"],
)
async def test_a_plugin_that_is_not_in_place_or_wrong_switches_the_routes_off(
    tiny_model: Callable[[str], Path], plan: Any, run_as_scheduler: Callable[[str], None], scheduler: str, reason: str
) -> None:
    run_as_scheduler(scheduler)
    async with engine_of(tiny_model("tinyq")) as engine:
        assert engine.info.routes == (Route.FULL, Route.SPEC_PC)
        for route in (Route.SPEC_KV, Route.SPEC_KV_PC):
            assert reason in engine.info.unsupported[route]
        assert (await answer(engine)).completion_tokens == 4
        # Whoever asks all the same is told, by the engine itself.
        with pytest.raises(RouteUnsupported, match=reason):
            await answer(engine, plan(64))


async def test_a_scheduler_that_fails_at_the_check_ends_the_start(
    tiny_model: Callable[[str], Path], run_as_scheduler: Callable[[str], None]
) -> None:
    run_as_scheduler(FAILING)
    with pytest.raises(TargetUnavailable, match="a process of the engine failed"):
        # It signals its parent.
        async with asyncio.timeout(120), engine_of(tiny_model("tinyq"), forks=False):
            pass


async def test_a_pool_too_small_for_the_check_serves_the_other_routes(tiny_model: Callable[[str], Path]) -> None:
    async with engine_of(tiny_model("tinyq"), pool_tokens=260) as engine:
        assert engine.info.unsupported[Route.SPEC_KV].endswith("it needs more than 266 KV slots, the pool has 260")
        assert (await answer(engine)).completion_tokens == 4


async def test_without_a_function_of_the_sampler_only_seeds_are_refused(
    tiny_model: Callable[[str], Path],
    plan: Any,
    run_as_scheduler: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = sglang_names._CHANGES[sglang_names.TESTED[0]]
    monkeypatch.setitem(changes, "around_sample_from_probs", "layers.sampler.Sampler.gone")
    run_as_scheduler(RENAMED_SAMPLER)
    async with engine_of(tiny_model("tinyq")) as engine:
        reason = "has no sglang.srt.layers.sampler.Sampler.gone"
        assert engine.info.routes == (*KV_KEEPING_ROUTES, *KV_DROPPING_ROUTES)
        assert reason in engine.info.unsupported_seeds
        assert [reason in record.getMessage() for record in caplog.records].count(True) == 1
        for sampling in ({}, {"temperature": 0.7}, {"temperature": 0.7, "min_p": 0.1}):
            assert (await answer(engine, **sampling)).completion_tokens == 4
        assert (await answer(engine, plan(64))).kv_tokens == 65
        with pytest.raises(InvalidRequest, match=f"sampling.seed .* {reason}"):
            check_fits(asking(temperature=0.7, seed=1), engine.info)


async def test_a_check_that_is_aborted_is_repeated(
    tiny_model: Callable[[str], Path], plan: Any, run_as_scheduler: Callable[[str], None]
) -> None:
    run_as_scheduler(ABORTED)
    async with engine_of(tiny_model("tinyq")) as engine:
        reason = "the self-check was interrupted and will be repeated: a request was aborted"
        assert engine.info.unsupported[Route.SPEC_KV].startswith(reason)
        with pytest.raises(RouteUnsupported, match=reason):
            await answer(engine, plan(64))
        await answer(engine, tokens=150)  # as many steps of the scheduler
        async with asyncio.timeout(60):
            while (await engine.plugin_state())["unsupported"]:
                await asyncio.sleep(0.1)
        assert (await answer(engine, plan(64))).kv_tokens == 65


async def test_an_untested_sglang_drops_kv_if_the_check_passes(
    tiny_model: Callable[[str], Path], plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sglang_names, "is_tested", lambda sglang: False)
    async with engine_of(tiny_model("tinyq")) as engine:
        assert engine.info.name.endswith(" (untested)")
        assert engine.info.unsupported == {}
        assert (await answer(engine, plan(64))).kv_tokens == 65


async def test_where_it_is_in_place_both_routes_are_served(start: Any) -> None:
    info = (await start()).engine.info

    assert {Route.SPEC_KV, Route.SPEC_KV_PC} <= set(info.routes)
    assert (info.unsupported, info.kv_page_tokens) == ({}, 1)
