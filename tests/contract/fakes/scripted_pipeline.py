"""The HTTP API over a pipeline that yields the events of a script: what no fake target can generate."""

import asyncio
from types import SimpleNamespace

import httpx
import openai

from presift.core.generation import FinishReason
from presift.core.plan import ModelInfo, Route
from presift.orchestrator.admission.answer_bytes import AnswerBytes
from presift.orchestrator.api.http.app import application
from presift.orchestrator.api.http.call import Access
from presift.orchestrator.api.http.endpoints import CompletionEndpoints, EndpointOptions
from presift.orchestrator.api.http.models import ServedModels
from presift.orchestrator.domain.ports import TargetInfo, Usage
from presift.orchestrator.pipeline.events import Report
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.orchestrator.routing.choice import Reason
from presift.orchestrator.routing.decision import Decision
from presift.rpc.server.active_calls import ActiveCalls

from .stack import byte_tokenizer, template

MODEL = ModelInfo("target", "r1", "f1", 400, 4, 2, 1000)


def decision(prompt_tokens=3):
    counts = {"prompt_tokens": prompt_tokens, "kept_tokens": prompt_tokens, "kv_tokens": prompt_tokens}
    return Decision(Route.FULL, Reason.BELOW_THRESHOLD, "", protected_tokens=0, target=MODEL, **counts)


def report(choice=0, completion_tokens=2, reason=FinishReason.STOP, prompt_tokens=3, **more):
    usage = Usage(prompt_tokens, 1, completion_tokens, reason, prompt_tokens, ttft_ms=7.0, **more)
    return Report(decision(prompt_tokens), usage, 8.0, 9.0, choice)


class ScriptedPipeline:
    """`events` are those of every request, or a function of the request's number; an exception in them is raised.
    `requests` are those that came, `most_at_once` how many of them ran at once."""

    def __init__(self, events, template_variables=frozenset()):
        self.events = events if callable(events) else lambda number: events
        self.requests, self.running, self.most_at_once = [], 0, 0
        tokenizer = PromptTokenizer(byte_tokenizer(), template, template_variables=template_variables)
        self.parts = SimpleNamespace(tokenizer=tokenizer, answer_bytes=AnswerBytes(2**20))

    def target_info(self):
        return TargetInfo(MODEL, frozenset({Route.FULL}))

    async def generate(self, request, deadline):
        events = self.events(len(self.requests))
        self.requests.append(request)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            for event in events:
                await asyncio.sleep(0)
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.running -= 1


class ScriptedHttpApi:
    """OpenAI's client of a scripted pipeline, without a network."""

    def __init__(self, events, **options):
        self.pipeline = ScriptedPipeline(events, **options)
        models = ServedModels(self.pipeline.target_info)
        endpoints = CompletionEndpoints(self.pipeline, models, EndpointOptions(2**20, 5))
        app = application(Access(None, ActiveCalls(100)), endpoints, models, lambda: True)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://scripted")
        self.client = openai.AsyncOpenAI(
            base_url="http://scripted/v1", api_key="none", max_retries=0, http_client=self.http
        )

    @property
    def request(self):
        return self.pipeline.requests[-1]

    async def chat(self, **parameters):
        messages = parameters.pop("messages", [{"role": "user", "content": "hi"}])
        answer = await self.client.chat.completions.create(model="target", messages=messages, **parameters)
        return [chunk async for chunk in answer] if parameters.get("stream") else answer

    async def text(self, prompt="abc", **parameters):
        answer = await self.client.completions.create(model="target", prompt=prompt, **parameters)
        return [chunk async for chunk in answer] if parameters.get("stream") else answer
