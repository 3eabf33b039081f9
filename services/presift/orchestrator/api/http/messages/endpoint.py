"""/v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import TypeVar

from presift.orchestrator.api.http.call import Call
from presift.orchestrator.api.http.completions import View
from presift.orchestrator.api.http.messages.conversion import OWN, chat_from_messages
from presift.orchestrator.api.http.messages.rendering import MessageRenderer
from presift.orchestrator.api.http.messages.schema import NEUTRAL, WHY, WITHOUT_EFFECT, CountBody, MessagesBody
from presift.orchestrator.api.http.reading import ReadBody
from presift.orchestrator.api.http.schema import validate
from presift.orchestrator.api.http.translated import ChatAdapter
from presift.orchestrator.api.http.translation import Translated, shared_parameters, without
from presift.orchestrator.api.http.unsupported import check_neutral

T = TypeVar("T", bound=CountBody)


class MessagesEndpoints:
    """Answers a conversation, or counts the tokens that it would be."""

    def __init__(self, adapter: ChatAdapter) -> None:
        self._adapter = adapter

    async def create(self, call: Call) -> None:
        stop: list[str] = []

        def translate(read: ReadBody) -> Translated:
            body = _body(read, MessagesBody)
            stop.extend(body.stop_sequences or ())
            return chat_from_messages(body, read.given, read.ignored, self._adapter.template_variables)

        def renderer(view: View) -> MessageRenderer:
            return MessageRenderer(view, stop, self._adapter.tokenizer)

        await self._adapter.answer(call, await self._adapter.read(call), translate, renderer)

    async def count(self, call: Call) -> None:
        def translate(read: ReadBody) -> Translated:
            # Of an answer, only what changes the prompt counts.
            return chat_from_messages(_body(read, CountBody), {}, read.ignored, self._adapter.template_variables)

        tokens = await self._adapter.tokenize(call, await self._adapter.read(call), translate)
        await call.reply.send_json(200, {"input_tokens": len(tokens)})


def _body(read: ReadBody, schema: type[T]) -> T:
    given = read.given
    check_neutral(given, NEUTRAL, WHY)
    elsewhere = {*NEUTRAL, *WITHOUT_EFFECT, *shared_parameters(given, OWN)}
    return validate(schema, without(given, elsewhere), read.ignored)
