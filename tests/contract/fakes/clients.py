"""The two clients behind one asynchronous face."""

import asyncio
from itertools import islice

from presift_client import AsyncClient, Client


class Blocking:
    """The blocking client, each call in a thread."""

    def __init__(self, address):
        self._client = Client(address)

    async def generate(self, *args, **options):
        return await asyncio.to_thread(self._client.generate, *args, **options)

    async def events(self, *args, **options):
        return await asyncio.to_thread(lambda: list(self._client.stream(*args, **options)))

    async def leave_after(self, count, *args, **options):
        """The first events; then the loop is left."""

        def take():
            stream = self._client.stream(*args, **options)
            taken = list(islice(stream, count))
            stream.close()
            return taken

        return await asyncio.to_thread(take)

    async def explain(self, *args, **options):
        return await asyncio.to_thread(self._client.explain, *args, **options)

    async def info(self):
        return await asyncio.to_thread(self._client.info)

    async def aclose(self):
        self._client.close()


class Asynchronous:
    """The asyncio client."""

    def __init__(self, address):
        self._client = AsyncClient(address)

    async def generate(self, *args, **options):
        return await self._client.generate(*args, **options)

    async def events(self, *args, **options):
        return [event async for event in self._client.stream(*args, **options)]

    async def leave_after(self, count, *args, **options):
        stream = self._client.stream(*args, **options)
        taken = [await anext(stream) for _ in range(count)]
        await stream.aclose()
        return taken

    async def explain(self, *args, **options):
        return await self._client.explain(*args, **options)

    async def info(self):
        return await self._client.info()

    async def aclose(self):
        await self._client.aclose()


CLIENTS = {"blocking": Blocking, "asyncio": Asynchronous}
