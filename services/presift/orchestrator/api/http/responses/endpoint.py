"""/v1/responses."""

from __future__ import annotations

from presift.orchestrator.api.http.call import Call
from presift.orchestrator.api.http.completions import View
from presift.orchestrator.api.http.reading import ReadBody
from presift.orchestrator.api.http.responses.conversion import OWN, chat_from_responses
from presift.orchestrator.api.http.responses.rendering import ResponseFormat, ResponseRenderer
from presift.orchestrator.api.http.responses.schema import NEUTRAL, WHY, WITHOUT_EFFECT, ResponsesBody
from presift.orchestrator.api.http.schema import validate
from presift.orchestrator.api.http.translated import ChatAdapter
from presift.orchestrator.api.http.translation import Translated, shared_parameters, without
from presift.orchestrator.api.http.unsupported import check_neutral


class ResponsesEndpoint:
    """Answers that are not stored: there is nothing to retrieve, cancel or continue."""

    def __init__(self, adapter: ChatAdapter) -> None:
        self._adapter = adapter

    async def create(self, call: Call) -> None:
        body: ResponsesBody

        def translate(read: ReadBody) -> Translated:
            nonlocal body
            body = _body(read)
            return chat_from_responses(body, read.given, read.ignored)

        def renderer(view: View) -> ResponseRenderer:
            renderer = ResponseRenderer(view, body)
            call.reply.format = ResponseFormat(renderer)
            return renderer

        await self._adapter.answer(call, await self._adapter.read(call), translate, renderer)


def _body(read: ReadBody) -> ResponsesBody:
    given = read.given
    check_neutral(given, NEUTRAL, WHY)
    elsewhere = {*NEUTRAL, *WITHOUT_EFFECT, *shared_parameters(given, OWN)}
    return validate(ResponsesBody, without(given, elsewhere), read.ignored)
