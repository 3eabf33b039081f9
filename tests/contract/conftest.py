"""The house of fakes, and telemetry in memory."""

import pytest

from .fakes.house import House, Options
from .fakes.openai_door import OpenaiDoor
from .fakes.telemetry import Telemetry


@pytest.fixture
async def build():
    """options -> a house that was not connected yet; all are stopped at the end."""
    houses = []

    async def build(**options):
        houses.append(House(Options(**options)))
        await houses[-1].start()
        return houses[-1]

    yield build
    for house in houses:
        await house.stop()


@pytest.fixture
def open_house(build):
    """options -> a house that is ready."""

    async def open_house(**options):
        return await (await build(**options)).connect()

    return open_house


@pytest.fixture
async def house(open_house):
    return await open_house()


@pytest.fixture
async def open_door():
    """house, options -> its HTTP door; closed before the house is."""
    doors = []

    async def open_door(house, **options):
        doors.append(await OpenaiDoor(house, **options).start())
        return doors[-1]

    yield open_door
    for door in doors:
        await door.stop()


@pytest.fixture(scope="session")
def _telemetry():
    return Telemetry()


@pytest.fixture
def telemetry(_telemetry):
    _telemetry.forget_spans()
    return _telemetry
