"""The HTTP door of a house, and clients that knock there."""

from contextlib import AsyncExitStack

import httpx
import openai

from presift.orchestrator.api.http.app import application
from presift.orchestrator.api.http.call import Calling
from presift.orchestrator.api.http.endpoints import Asking, Terms
from presift.orchestrator.api.http.models import ServedModels
from presift.orchestrator.api.http.server import HttpOptions, HttpServer

MODEL = "target"


class OpenaiDoor:
    """The door of a house that runs, in the same process. `tls` are files; `key` is what the clients show."""

    def __init__(self, house, *, doorkeeper=None, key="none", salt="", explains=True, aliases="", tls=None, **terms):
        self.house, self.key, self.tls = house, key, tls
        terms = Terms(terms.get("max_body_bytes", 2**20), terms.get("max_new_tokens", 5), salt, explains)
        models = ServedModels(house.pipeline.target_info, aliases)
        self.app = application(
            Calling(doorkeeper, house.server.calls),
            Asking(house.pipeline, models, terms),
            models,
            is_serving=lambda: house.server.is_serving,
        )
        self.server = HttpServer(self.app, HttpOptions("127.0.0.1:0", tls))
        self._exit = AsyncExitStack()

    async def start(self):
        self.address = await self.server.start()
        self.house.server.doors.append(self.server)
        self.url = f"http{'s' if self.tls else ''}://{self.address}"
        self.http = await self._exit.enter_async_context(httpx.AsyncClient(base_url=self.url, timeout=60))
        self.client = self.client_of(self.key)
        return self

    def client_of(self, key, **options):
        """An asynchronous client of OpenAI's own library."""
        options = {"max_retries": 0, "timeout": 60} | options
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, **options)

    def blocking(self, **options):
        options = {"max_retries": 0, "timeout": 60} | options
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, **options)

    async def post(self, body, path="/v1/chat/completions", **headers):
        return await self.http.post(path, json=body, headers={name.replace("_", "-"): v for name, v in headers.items()})

    async def stop(self):
        await self._exit.aclose()
        await self.server.stop(0)
