"""Calibration: learned costs before the first caller, without delaying one."""

import asyncio
import logging
import sys

import numpy as np
import pytest

from presift.core.errors import Overloaded
from presift.orchestrator.estimation.calibration import STEPS
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.v1 import plan_pb2

from ..fakes.services import hangs, model, raises, takes
from ..fakes.stack import ALL_ROUTES, CAPACITY

LONG = list(range(1, 201))


@pytest.fixture
async def stack(open_stack):
    """Its target has room for two of the three prompts."""
    return await open_stack(routes=ALL_ROUTES, estimator=CostEstimator(), salt="tenant")


async def calibrate(stack):
    stack.calibration.start()
    await stack.calibration._task


def stages(stack):
    estimator = stack.options.estimator
    return {each.stage: each.curve.observations for each in estimator.learned()}


def cached(stack, ids):
    estimator, target = stack.options.estimator, stack.models.target.model
    return estimator.state(np.array(ids, dtype=np.uint32), target, None).cached_tokens


async def test_reading_decoding_and_drafting_are_timed(stack):
    await calibrate(stack)
    assert stages(stack) == {"draft": 2, "target": 2, "decoding": 2}
    assert [len(call.token_ids) for call in stack.target.calls] == [64, 256]
    for call in stack.target.calls:
        assert call.cache_salt.startswith("calibration") and call.sampling.max_new_tokens == STEPS + 1
        assert cached(stack, call.token_ids) == 0
    for call in stack.draft.calls:
        assert call.policy.spec_pc.capacity < len(call.token_ids)
    # The fake reports 7 ms for any prompt.
    answer = await stack.ask(LONG, route=plan_pb2.ROUTE_FULL)
    assert answer.decision.predicted_ttft_ms < 30


async def test_all_lengths_that_fit_the_context(open_stack):
    big = {"target": model("target", context_tokens=4000), "draft": model("draft", context_tokens=4000)}
    stack = await open_stack(estimator=CostEstimator(), **big)
    await calibrate(stack)
    assert [len(call.token_ids) for call in stack.target.calls] == [64, 256, 1024] and stages(stack)["draft"] == 3


@pytest.mark.parametrize("service", ["draft", "target"])
async def test_the_first_caller_ends_calibration(stack, service):
    fake = getattr(stack, service)
    fake.faults.append(hangs)
    stack.calibration.start()
    await stack.settle(lambda: fake.calls)
    answer = await stack.ask(LONG)
    assert answer.route == "SPEC_PC" and answer.decision.kept_tokens == CAPACITY
    await stack.settle(lambda: fake.cancelled == 1 and stack.calibration._task.done())
    stack.calibration.start()
    assert stack.calibration._task.done()  # not again


async def test_calibration_ends_at_its_time_limit(open_stack, caplog):
    caplog.set_level(logging.INFO)
    stack = await open_stack(estimator=CostEstimator(), calibration_limit_s=0.05)
    stack.target.faults.append(takes(30))
    await calibrate(stack)
    assert stages(stack) == {"draft": 1} and "cut short" in caplog.text


async def test_a_failure_is_logged_and_learned_costs_are_kept(stack, caplog):
    stack.target.faults.append(raises(Overloaded("queue", 9, 8, 2.0)))
    await calibrate(stack)
    assert stages(stack) == {"draft": 1} and "not calibrated to the end" in caplog.text
    assert (await stack.ask(LONG)).text


async def test_without_a_draft_the_target_is_timed(open_stack):
    stack = await open_stack(estimator=CostEstimator(), draft_up=False)
    await calibrate(stack)
    assert stages(stack) == {"target": 2, "decoding": 2}


async def test_closing_ends_calibration(stack):
    stack.target.faults.append(hangs)
    stack.calibration.start()
    await stack.settle(lambda: stack.target.calls)
    async with asyncio.timeout(60):
        await stack.calibration.aclose()
    assert stack.calibration._task.cancelled()


@pytest.mark.processes
@pytest.mark.parametrize(("flag", "lengths"), [("--calibrate", [64, 256]), ("--no-calibrate", [])])
async def test_the_process_calibrates_once_it_is_ready(stack, flag, lengths):
    addresses = [f"--{name}-address=127.0.0.1:{port}" for name, port in stack.ports.items()]
    command = [sys.executable, "-m", "presift.orchestrator", "--listen=127.0.0.1:0", *addresses, flag]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(60):
            assert b"ready" in await process.stdout.readline()
            if lengths:
                await stack.settle(lambda: len(stack.target.calls) == len(lengths))
        process.terminate()
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert [len(call.token_ids) for call in stack.target.calls] == lengths
