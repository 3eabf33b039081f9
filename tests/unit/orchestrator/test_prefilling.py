"""Who joins a reading waits for one that is under way, and starts none."""

import asyncio

import numpy as np
import pytest

from presift.orchestrator.prefilling import Prefiller

IDS, OTHER = np.array([1, 2, 3], np.uint32), np.array([1, 2], np.uint32)


class Target:
    """Reads once it is let go."""

    def __init__(self):
        self.go, self.calls = asyncio.Event(), []

    async def prefill(self, token_ids, salt, left_s, at):
        self.calls.append(token_ids.tolist())
        await self.go.wait()


@pytest.mark.asyncio
async def test_joining_starts_no_reading():
    target = Target()
    prefiller = Prefiller(target, salt="salt")
    async with asyncio.timeout(5):
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
    assert target.calls == [[1, 2, 3]]
