"""The HTTP API of a stack, and clients for it."""

from contextlib import AsyncExitStack

import httpx
import openai

from presift.orchestrator.api.http.app import AppOptions, application
from presift.orchestrator.api.http.call import Access
from presift.orchestrator.api.http.endpoints import CompletionEndpoints, EndpointOptions
from presift.orchestrator.api.http.models import ServedModels
from presift.orchestrator.api.http.server import HttpOptions, HttpServer

MODEL = "target"
# Reading the certificate authorities takes 40 ms: once, not for each client.
_TRUST = httpx.create_ssl_context()


class HttpApi:
    """The HTTP API of a running stack, in the same process. `tls` are files; `key` is what the clients send."""

    def __init__(
        self, stack, *, authenticator=None, key="none", salt="", explains=True, aliases="", tls=None, origins=(), **more
    ):
        self.stack, self.key, self.tls = stack, key, tls
        options = EndpointOptions(more.get("max_body_bytes", 2**20), more.get("max_new_tokens", 5), salt, explains)
        models = ServedModels(stack.pipeline.target_info, aliases)
        self.app = application(
            Access(authenticator, stack.server.calls, frozenset(origins)),
            CompletionEndpoints(stack.pipeline, models, options),
            models,
            is_serving=lambda: stack.server.is_serving,
            options=AppOptions(more.get("keepalive_s"), more.get("has_docs", True)),
        )
        self.server = HttpServer(self.app, HttpOptions("127.0.0.1:0", tls))
        self._exit = AsyncExitStack()

    async def start(self):
        self.address = await self.server.start()
        self.stack.server.listeners.append(self.server)
        self.url = f"http{'s' if self.tls else ''}://{self.address}"
        self.http = await self._exit.enter_async_context(
            httpx.AsyncClient(base_url=self.url, timeout=60, verify=_TRUST)
        )
        self.client = self.client_of(self.key)
        return self

    def client_of(self, key, **options):
        """An asynchronous client of OpenAI's own library."""
        options = {
            "max_retries": 0,
            "timeout": 60,
            "http_client": openai.DefaultAsyncHttpxClient(verify=_TRUST),
        } | options
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, **options)

    def blocking(self, **options):
        options = {"max_retries": 0, "timeout": 60, "http_client": openai.DefaultHttpxClient(verify=_TRUST)} | options
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, **options)

    async def post(self, body, path="/v1/chat/completions", **headers):
        return await self.http.post(path, json=body, headers={name.replace("_", "-"): v for name, v in headers.items()})

    async def stop(self):
        await self._exit.aclose()
        await self.server.stop(0)
