"""`join` waits for a prefill that is running and starts none; tenants join only their own."""

import asyncio

import numpy as np
import pytest

from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.planning.prefill import Prefiller


def tokens(*ids, salt="salt"):
    return TokenizedPrompt(np.array(ids, np.uint32), (), salt)


IDS, OTHER = tokens(1, 2, 3), tokens(1, 2)


class Target:
    """Has read as soon as `go` is set."""

    def __init__(self):
        self.go, self.calls = asyncio.Event(), []

    async def prefill(self, token_ids, salt, replica):
        self.calls.append((token_ids.tolist(), salt))
        await self.go.wait()


@pytest.mark.asyncio
async def test_joining_starts_no_prefill():
    target = Target()
    prefiller = Prefiller(target)
    async with asyncio.timeout(60):
        assert await prefiller.join(IDS) == 0.0
        reading = asyncio.create_task(prefiller.read(IDS))
        await asyncio.sleep(0.01)
        assert await prefiller.join(OTHER) == 0.0
        joining = asyncio.create_task(prefiller.join(IDS))
        await asyncio.sleep(0.01)
        assert not joining.done()
        target.go.set()
        assert await reading > 0 and await joining > 0
        assert await prefiller.join(IDS) == 0.0
    assert target.calls == [([1, 2, 3], "salt")]


@pytest.mark.asyncio
async def test_tenants_do_not_join_each_others_prefills():
    target = Target()
    prefiller = Prefiller(target)
    # Four bytes of a salt look like a token, but must not match one.
    theirs = tokens(1, salt="abcd")
    others = (tokens(1, salt=""), tokens(1, salt="abce"), tokens(int.from_bytes(b"abcd", "little"), 1, salt=""))
    async with asyncio.timeout(60):
        reading = asyncio.create_task(prefiller.read(theirs))
        await asyncio.sleep(0.01)
        assert [await prefiller.join(other) for other in others] == [0.0] * 3
        target.go.set()
        await reading
