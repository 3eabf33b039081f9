"""Single flight: one computation for all who ask at once, whoever of them leaves."""

import asyncio
import gc

import pytest

from presift.cache.single_flight import SingleFlight
from presift.core.errors import InternalError


class Work:
    """A computation that waits until it is let go, and counts."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.go = asyncio.Event()
        self.calls = self.cancelled = 0
        self.error = error

    async def __call__(self) -> str:
        self.calls += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        return f"result {self.calls}"


async def ask(
    flight: SingleFlight[str], work: Work, askers: int, key: str = "k"
) -> list[asyncio.Task[tuple[str, bool]]]:
    tasks = [asyncio.create_task(flight.run(key, work)) for _ in range(askers)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def cancel(*tasks: asyncio.Task[tuple[str, bool]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_64_askers_cost_one_computation() -> None:
    flight, work = SingleFlight[str](), Work()
    tasks = await ask(flight, work, 64)
    work.go.set()
    results = await asyncio.gather(*tasks)
    assert work.calls == 1 and len(flight) == 0
    assert [result for result, _ in results] == ["result 1"] * 64
    assert sorted(is_shared for _, is_shared in results) == [False] + [True] * 63


@pytest.mark.asyncio
async def test_different_keys_do_not_share() -> None:
    flight, work = SingleFlight[str](), Work()
    tasks = await ask(flight, work, 1, "a") + await ask(flight, work, 1, "b")
    assert len(flight) == 2
    work.go.set()
    assert [is_shared for _, is_shared in await asyncio.gather(*tasks)] == [False, False]
    assert work.calls == 2


@pytest.mark.asyncio
async def test_a_result_is_not_remembered() -> None:
    flight, work = SingleFlight[str](), Work()
    work.go.set()
    assert await flight.run("k", work) == ("result 1", False)
    assert await flight.run("k", work) == ("result 2", False)


@pytest.mark.asyncio
async def test_the_followers_outlive_a_cancelled_leader() -> None:
    flight, work = SingleFlight[str](), Work()
    leader, *followers = await ask(flight, work, 5)
    await cancel(leader)
    assert leader.cancelled() and len(flight) == 1
    work.go.set()
    assert await asyncio.gather(*followers) == [("result 1", True)] * 4
    assert work.calls == 1 and work.cancelled == 0


@pytest.mark.asyncio
async def test_the_computation_is_cancelled_when_nobody_waits() -> None:
    flight, work = SingleFlight[str](), Work()
    await cancel(*await ask(flight, work, 5))
    assert work.cancelled == 1 and len(flight) == 0


@pytest.mark.asyncio
async def test_a_newcomer_does_not_join_an_abandoned_computation() -> None:
    flight, work = SingleFlight[str](), Work()
    (lonely,) = await ask(flight, work, 1)
    lonely.cancel()
    await asyncio.sleep(0)  # the asker has left; its computation has not yet seen the cancellation
    (newcomer,) = await ask(flight, work, 1)
    work.go.set()
    assert await newcomer == ("result 2", False)
    assert work.cancelled == 1 and len(flight) == 0


@pytest.mark.asyncio
async def test_an_error_reaches_every_asker_and_is_not_remembered() -> None:
    flight, work = SingleFlight[str](), Work(ValueError("no"))
    tasks = await ask(flight, work, 8)
    work.go.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, ValueError) for outcome in outcomes)
    work.error = None
    assert await flight.run("k", work) == ("result 2", False)
    assert len(flight) == 0


@pytest.mark.asyncio
async def test_a_cancellation_from_within_is_an_error_not_the_askers_cancellation() -> None:
    flight, work = SingleFlight[str](), Work(asyncio.CancelledError())
    tasks = await ask(flight, work, 2)
    work.go.set()
    assert [type(e) for e in await asyncio.gather(*tasks, return_exceptions=True)] == [InternalError] * 2


@pytest.mark.asyncio
async def test_an_error_without_waiting_callers_is_not_logged() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def fails_to_be_cancelled() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError("while cleaning up")

    flight = SingleFlight[str]()
    task = asyncio.create_task(flight.run("k", fails_to_be_cancelled))
    await asyncio.sleep(0.01)
    await cancel(task)
    await asyncio.sleep(0.01)
    del task  # its traceback holds the flight, and asyncio complains when that is collected
    gc.collect()
    assert not complaints and len(flight) == 0


@pytest.mark.asyncio
async def test_a_caller_whose_deadline_passes_does_not_affect_the_others() -> None:
    flight, work = SingleFlight[str](), Work()
    (patient,) = await ask(flight, work, 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await flight.run("k", work)
    work.go.set()
    assert await patient == ("result 1", False)


@pytest.mark.asyncio
async def test_it_says_what_is_under_way() -> None:
    flight, work = SingleFlight[str](), Work()
    assert not flight.is_under_way("k")
    tasks = await ask(flight, work, 2)
    assert flight.is_under_way("k") and not flight.is_under_way("other")
    await cancel(tasks[0])
    assert flight.is_under_way("k")
    work.go.set()
    assert await tasks[1] == ("result 1", True)
    assert not flight.is_under_way("k")


@pytest.mark.asyncio
async def test_what_everybody_left_or_what_failed_is_not_under_way() -> None:
    flight, left, failed = SingleFlight[str](), Work(), Work(InternalError("planted"))
    await cancel(*await ask(flight, left, 2))
    assert not flight.is_under_way("k")
    failed.go.set()
    (task,) = await ask(flight, failed, 1)
    with pytest.raises(InternalError):
        await task
    assert not flight.is_under_way("k")
