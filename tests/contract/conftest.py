"""The stack of fakes, and telemetry in memory."""

import pytest

from .fakes.http_api import HttpApi
from .fakes.stack import Options, Stack
from .fakes.telemetry import Telemetry


@pytest.fixture
async def build():
    """options -> a stack that was not connected yet; all are stopped at the end."""
    stacks = []

    async def build(**options):
        stacks.append(Stack(Options(**options)))
        await stacks[-1].start()
        return stacks[-1]

    yield build
    for stack in stacks:
        await stack.stop()


@pytest.fixture
def open_stack(build):
    """options -> a stack that is ready."""

    async def open_stack(**options):
        return await (await build(**options)).connect()

    return open_stack


@pytest.fixture
async def stack(open_stack):
    return await open_stack()


@pytest.fixture
async def open_http_api():
    """stack, options -> its HTTP API; closed before the stack is."""
    apis = []

    async def open_http_api(stack, **options):
        apis.append(await HttpApi(stack, **options).start())
        return apis[-1]

    yield open_http_api
    for api in apis:
        await api.stop()


@pytest.fixture(scope="session")
def _telemetry():
    return Telemetry()


@pytest.fixture
def telemetry(_telemetry):
    _telemetry.forget_spans()
    return _telemetry
