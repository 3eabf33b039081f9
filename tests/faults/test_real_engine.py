"""A real SGLang engine under faults: what it answers stays right, and it ends with all its KV slots free."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from presift_client import AsyncClient

from .meter import free_kv_tokens
from .scenarios import FAULTS, RECOVERY_LIMIT_S, Row, play
from .stack import KV_POOL_TOKENS, Plan, Stack
from .traffic import NEW_TOKENS, Crowd, Oracle

pytestmark = [
    pytest.mark.faults,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang"),
]
NUMBERS, CALLERS, ROUTES = range(10), 6, ("full", "spec_pc")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Stack, Crowd]]:
    """A stack with one real target, and callers who know the answers of the same model in transformers."""
    folder = tiny_model("tinyl")
    plan = Plan(tiny_model("tinyq"), tmp_path_factory.mktemp("real"), orchestrators=1, target_model=folder)
    async with Stack(plan) as stack:
        oracle = Oracle(_greedy(folder))
        async with AsyncClient(stack.addresses[0]) as client:
            await oracle.learn(client, NUMBERS, ["spec_pc"])
        yield stack, Crowd(stack.addresses, oracle, NUMBERS, CALLERS, ROUTES)


def _greedy(folder: Path) -> Callable[[Sequence[int], int], list[int]]:
    import torch

    from presift.models.torchvision_ops import declare_missing

    declare_missing()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @cache
    def answer(read: tuple[int, ...]) -> list[int]:
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([read]), do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS
            )
        return out[0, len(read) :].tolist()

    return lambda read, tokens: answer(tuple(read))[:tokens]


def _members(session: int) -> list[psutil.Process]:
    """The living processes of a service's session."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@pytest.mark.parametrize("fault", ["cut", "half-open", "SIGSTOP", "kill -9"])
async def test_a_real_target(real: tuple[Stack, Crowd], rows: list[Row], fault: str) -> None:
    stack, crowd = real
    session = stack.pid("target-0")
    row = await play(stack, crowd, "target-0", FAULTS[fault])
    rows.append(Row("target (SGLang)", *[getattr(row, name) for name in Row.__slots__[1:]]))
    assert row.complaints() == []
    assert row.recovery_s <= RECOVERY_LIMIT_S
    await asyncio.sleep(2.0)  # a load that is told is up to a second old
    assert await free_kv_tokens(stack, "target-0") == KV_POOL_TOKENS
    if fault == "kill -9":
        assert _members(session) == []
