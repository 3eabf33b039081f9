"""/v1/responses."""

from __future__ import annotations

from presift.orchestrator.api.http.call import Call
from presift.orchestrator.api.http.reading import ReadBody
from presift.orchestrator.api.http.responses.conversion import PARAMETERS, chat_from_responses
from presift.orchestrator.api.http.responses.rendering import ResponseRenderer
from presift.orchestrator.api.http.responses.schema import ResponsesBody
from presift.orchestrator.api.http.translated import ChatAdapter, TranslatedCall


class ResponsesEndpoint:
    """Answers that are not stored: there is nothing to retrieve, cancel or continue."""

    def __init__(self, adapter: ChatAdapter) -> None:
        self._adapter = adapter

    async def create(self, call: Call) -> None:
        def translate(read: ReadBody) -> TranslatedCall:
            body = PARAMETERS.validated(ResponsesBody, read.given, read.ignored)
            chat = chat_from_responses(body, read.given, read.ignored)
            return TranslatedCall(chat, lambda view: ResponseRenderer(view, body))

        await self._adapter.answer(call, await self._adapter.read(call), translate)
