"""Racing: one call more at most, the first answer wins, the other is cancelled."""

import asyncio

import pytest

from presift.rpc.pool.hedging import hedged


class Leg:
    """Ends when `gate` opens, with `outcome`."""

    def __init__(self, outcome):
        self.outcome, self.gate = outcome, asyncio.Event()
        self.began, self.cancelled = asyncio.Event(), False

    async def __call__(self):
        self.began.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def legs():
    return Leg("first"), Leg("second")


async def test_an_answer_in_time_is_not_hedged(legs):
    first, second = legs
    first.gate.set()
    assert await hedged(first, second, 60.0) == ("first", False)
    assert not second.began.is_set()


@pytest.mark.parametrize("winner", [0, 1])
async def test_the_first_answer_wins_and_the_other_is_cancelled(legs, winner):
    race = asyncio.create_task(hedged(*legs, 0.0))
    await legs[1].began.wait()
    legs[winner].gate.set()
    assert await race == (legs[winner].outcome, bool(winner))
    assert legs[1 - winner].cancelled and not legs[winner].cancelled


@pytest.mark.parametrize("failing", [0, 1])
async def test_a_failure_leaves_the_race_to_the_other(legs, failing):
    legs[failing].outcome = RuntimeError("away")
    race = asyncio.create_task(hedged(*legs, 0.0))
    await legs[1].began.wait()
    legs[failing].gate.set()
    await asyncio.sleep(0)
    legs[1 - failing].gate.set()
    assert await race == (legs[1 - failing].outcome, not failing)


async def test_a_failure_in_time_is_not_raced(legs):
    first, second = legs
    first.outcome = RuntimeError("away")
    first.gate.set()
    with pytest.raises(RuntimeError):
        await hedged(first, second, 60.0)
    assert not second.began.is_set()


async def test_where_both_fail_the_first_speaks(legs):
    first, second = legs
    first.outcome, second.outcome = RuntimeError("one"), RuntimeError("two")
    race = asyncio.create_task(hedged(first, second, 0.0))
    await second.began.wait()
    second.gate.set()
    await asyncio.sleep(0)
    first.gate.set()
    with pytest.raises(RuntimeError, match="one"):
        await race


async def test_cancelling_cancels_both_attempts(legs):
    race = asyncio.create_task(hedged(*legs, 0.0))
    await legs[1].began.wait()
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race
    assert all(leg.cancelled for leg in legs)
