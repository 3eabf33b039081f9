"""/v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from presift.orchestrator.api.http.call import Call
from presift.orchestrator.api.http.messages.conversion import PARAMETERS, chat_from_messages
from presift.orchestrator.api.http.messages.rendering import MessageRenderer
from presift.orchestrator.api.http.messages.schema import CountBody, MessagesBody
from presift.orchestrator.api.http.reading import ReadBody
from presift.orchestrator.api.http.translated import ChatAdapter, TranslatedCall
from presift.orchestrator.api.http.translation import Translated


class MessagesEndpoints:
    """Answers a conversation, or counts the tokens that it would be."""

    def __init__(self, adapter: ChatAdapter) -> None:
        self._adapter = adapter

    async def create(self, call: Call) -> None:
        def translate(read: ReadBody) -> TranslatedCall:
            body = PARAMETERS.validated(MessagesBody, read.given, read.ignored)
            chat = chat_from_messages(body, read.given, read.ignored, self._adapter.template_variables)
            stop = body.stop_sequences or ()
            return TranslatedCall(chat, lambda view: MessageRenderer(view, stop, self._adapter.tokenizer))

        await self._adapter.answer(call, await self._adapter.read(call), translate)

    async def count(self, call: Call) -> None:
        def translate(read: ReadBody) -> Translated:
            body = PARAMETERS.validated(CountBody, read.given, read.ignored)
            # Of an answer, only what changes the prompt counts.
            return chat_from_messages(body, {}, read.ignored, self._adapter.template_variables)

        tokens = await self._adapter.tokenize(call, await self._adapter.read(call), translate)
        await call.reply.send_json(200, {"input_tokens": len(tokens)})
