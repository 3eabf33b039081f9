"""/tokenize and /detokenize, as SGLang's and vLLM's servers have them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, ClassVar, TypeVar

from presift.core.errors import InvalidRequest, PromptTooLong
from presift.core.limits import MAX_PROMPT_TOKENS, check_limits
from presift.orchestrator.api.http.call import Call
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.parameter_names import ParameterNames
from presift.orchestrator.api.http.reading import ReadBody
from presift.orchestrator.api.http.reply import json_bytes
from presift.orchestrator.api.http.requests import MAX_PROMPTS
from presift.orchestrator.api.http.schema import Schema, validate
from presift.orchestrator.api.http.translated import ChatAdapter
from presift.orchestrator.api.http.translation import Translated, TranslatedNames
from presift.orchestrator.domain.limits import TEXT
from presift.orchestrator.prompt.raw_tokens import decode, encode, token_strings
from presift.orchestrator.prompt.tokenizing_limit import byte_count, check_length, check_text_length

# With `messages` the chat template writes the special tokens.
_OF_TEXTS = ("add_special_tokens", "prompt", "return_token_strs")

T = TypeVar("T")


class TokenizeBody(Schema):
    """A prompt is a text or a list of texts; `messages` are read as a chat's body."""

    place: ClassVar[str | None] = ""
    model: str | None = None
    prompt: Any
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeBody(Schema):
    """`tokens` are ids, or a list of lists of them."""

    place: ClassVar[str | None] = ""
    model: str | None = None
    tokens: Any
    skip_special_tokens: bool = True


class TokenEndpoints:
    """The target's tokenizer."""

    def __init__(self, adapter: ChatAdapter) -> None:
        self._adapter = adapter

    async def tokenize(self, call: Call) -> None:
        read = await self._adapter.read(call)
        if (read.given.get("messages") is None) == (read.given.get("prompt") is None):
            if read.given.get("prompt") is None:
                raise InvalidRequest("prompt", "missing", "given, or messages instead of it")
            raise InvalidRequest("prompt", "given", "left out beside messages")
        if read.given.get("prompt") is None:
            await self._send_chat(call, read)
        else:
            await self._send_texts(call, read)

    async def _send_chat(self, call: Call, read: ReadBody) -> None:
        given = {name: value for name, value in read.given.items() if name not in _OF_TEXTS}
        names = TranslatedNames()
        tokens = await self._adapter.tokenize(call, read, lambda _: Translated(given, names))
        strings = read.given.get("return_token_strs") is True
        size = int(tokens.size)
        await self._send(call, read, lambda: self._body([tokens.tolist()], is_list=False, strings=strings), size)

    async def _send_texts(self, call: Call, read: ReadBody) -> None:
        body = validate(TokenizeBody, read.given, read.ignored)
        call.reply.names = ParameterNames()
        texts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        if not texts or len(texts) > MAX_PROMPTS or not all(isinstance(text, str) for text in texts):
            raise InvalidRequest("prompt", brief(body.prompt), f"a text, or a list of 1..{MAX_PROMPTS} texts")
        for text in texts:
            check_limits(text, TEXT)

        def work() -> dict[str, Any]:
            tokens = self._encode(texts, add_special_tokens=body.add_special_tokens)
            return self._body(tokens, is_list=isinstance(body.prompt, list), strings=body.return_token_strs)

        await self._send(call, read, work, sum(map(byte_count, texts)))

    def _encode(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Raises PromptTooLong before more than MAX_PROMPT_TOKENS are in memory, of all texts together."""
        backend, tokens, count = self._adapter.tokenizer, list[list[int]](), 0
        for text in texts:
            check_length(backend, text, byte_count(text))
            tokens.append(encode(backend, text, add_special_tokens=add_special_tokens))
            count += len(tokens[-1])
            if count > MAX_PROMPT_TOKENS:
                limit = f"at most {MAX_PROMPT_TOKENS}, of all texts together"
                raise PromptTooLong("prompt", f"more than {MAX_PROMPT_TOKENS} tokens", limit)
        return tokens

    async def detokenize(self, call: Call) -> None:
        read = await self._adapter.read(call)
        body = validate(DetokenizeBody, read.given, read.ignored)
        call.reply.names = ParameterNames()

        def work() -> dict[str, Any]:
            lists, is_list = _id_lists(body.tokens)
            check_text_length(self._adapter.tokenizer, list(chain.from_iterable(lists)))
            skips = body.skip_special_tokens
            texts = [decode(self._adapter.tokenizer, ids, skip_special_tokens=skips) for ids in lists]
            text = texts if is_list else texts[0]
            return {"text": text, "prompt": text}  # SGLang's name and vLLM's

        await self._send(call, read, work, read.size // 2)  # an id takes two bytes at least

    async def _send(self, call: Call, read: ReadBody, work: Callable[[], dict[str, Any]], size: int) -> None:
        """Do `work` on `size` bytes of text, or as many token ids."""
        ignored = {"presift": {"ignored": list(read.ignored)}} if read.ignored else {}
        async with call.client.cancels_on_disconnect():
            raw = await self._adapter.in_tokenizer(call.caller, lambda: json_bytes(work() | ignored), size)
        await call.reply.send_bytes(200, raw)

    def _body(self, tokens: list[list[int]], *, is_list: bool, strings: bool) -> dict[str, Any]:
        counts = [len(ids) for ids in tokens]
        body = {"tokens": _one(tokens, is_list), "count": _one(counts, is_list)}
        body["max_model_len"] = self._adapter.context_tokens
        if strings:
            body["token_strs"] = _one([token_strings(self._adapter.tokenizer, ids) for ids in tokens], is_list)
        return body


def _one(values: list[T], is_list: bool) -> Any:
    return values if is_list else values[0]


def _id_lists(tokens: Any) -> tuple[list[list[int]], bool]:
    """The lists, and whether there may be several. Raises InvalidRequest."""
    if isinstance(tokens, list):
        is_list = bool(tokens) and all(isinstance(each, list) for each in tokens)
        lists = tokens if is_list else [tokens]
        if (count := sum(map(len, lists))) > MAX_PROMPT_TOKENS:
            raise InvalidRequest("tokens", f"{count} token ids", f"at most {MAX_PROMPT_TOKENS}")
        if all(type(each) is int and 0 <= each < 2**32 for ids in lists for each in ids):
            return lists, is_list
    raise InvalidRequest("tokens", brief(tokens), "a list of token ids, or a list of such lists")
