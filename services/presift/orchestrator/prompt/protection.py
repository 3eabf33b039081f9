"""Decides which characters of a rendered chat a policy may drop; all others are protected.

Droppable are the documents that the caller marked (parts, and the descriptions of tools) or, without any mark, the
texts of unprotected messages. Template tokens, other definitions of tools and everything else that the template adds
are therefore protected without being recognized. So is an answer that the caller wants continued, and a message that
the template rewrites (see chat_frame.py).

This module works on characters; protected_tokens.py maps them to tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

from presift.orchestrator.domain.request import Chat
from presift.orchestrator.prompt.chat_frame import ChatFrame, FoundText, Range

# In characters, about 256 tokens of English. Up to this length, the last user message, or its last part, counts as a
# question and is protected. A longer one contains documents; the policy's window keeps its end.
QUESTION_CHARACTERS = 1024


def droppable_ranges(chat: Chat, frame: ChatFrame) -> tuple[Range, ...]:
    """The characters of the rendered chat that a policy may drop, ascending and not overlapping."""
    return tuple(text.range for kind, text in _kinds(chat, frame) if not kind)


def protected_ranges(chat: Chat, frame: ChatFrame) -> tuple[tuple[str, Range], ...]:
    """The caller's texts that no policy may drop, each with what it is in words. The rest of the prompt, which the
    template adds, is protected as well."""
    return tuple((kind, text.range) for kind, text in _kinds(chat, frame) if kind)


def _kinds(chat: Chat, frame: ChatFrame) -> Iterator[tuple[str, FoundText]]:
    """The texts that are not empty, each with the reason to keep it, empty for none."""
    has_documents, question = chat.has_documents, _question(chat)

    def kind(text: FoundText) -> str:
        if text.message >= len(chat.messages):
            return ""  # a description of a tool that is marked as a document
        message = chat.messages[text.message]
        part = None if text.part is None else message.parts[text.part]
        if chat.continue_final_message and text.message == len(chat.messages) - 1:
            return "the answer to continue"
        if message.protected or (part is not None and part.protected):
            return "marked as protected"
        if has_documents:
            return "" if part is not None and part.document else "not marked as documents"
        if message.role == "system":
            return "system messages"
        return "the question" if (text.message, text.part) in question else ""

    return ((kind(text), text) for text in frame.texts if text.range.start < text.range.end)


def _question(chat: Chat) -> set[tuple[int, int | None]]:
    """The parts that are the question: (message, part)."""
    at = max((at for at, message in enumerate(chat.messages) if message.role == "user"), default=-1)
    if at < 0:
        return set()
    lengths = [len(part.text) for part in chat.messages[at].parts]
    last = len(lengths) - 1
    if sum(lengths) <= QUESTION_CHARACTERS:
        return {(at, part) for part in range(len(lengths))}
    return {(at, last)} if last > 0 and lengths[last] <= QUESTION_CHARACTERS else set()
