"""What shortens a prompt before the target reads it.

Kept in any case are all other messages and the question. A question that is not apart from its document is the last
line of the text, of which presift itself keeps only what is in its window.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# Options of the client with a prompt -> its tokens.
Count = Callable[[dict[str, Any]], Awaitable[int]]

_WORDS = 100
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Divided:
    """A prompt around the one text that is shortened. `question` may be a part of what is kept."""

    before: list[dict[str, Any]]
    role: str
    document: str
    question: str
    after: list[dict[str, Any]]

    def prompt(self, document: str) -> dict[str, Any]:
        """Options of the client, with `document` in the place of its own."""
        return {"messages": [*self.before, {"role": self.role, "content": document + self.question}, *self.after]}


def divide(prompt: dict[str, Any]) -> Divided:
    """Find the text to shorten: the longest one of the user's. Raises ValueError for a prompt without messages."""
    messages = prompt.get("messages")
    if messages is None:
        raise ValueError("a plain text has no question of its own; give messages")
    longest = max(range(len(messages)), key=lambda number: _length(messages[number]))
    message = messages[longest]
    document, question = _parts(message["content"])
    return Divided(messages[:longest], message["role"], document, question, messages[longest + 1 :])


class Peer(Protocol):
    """A method that shortens texts. `peak_mib` is the most memory that a process of its own took, None without one."""

    peak_mib: float | None

    async def shortened(self, divided: Divided, most_tokens: int, count: Count) -> tuple[str, float]:
        """The document for a prompt of at most `most_tokens`, and the milliseconds that it took without counting."""


class Ranking:
    """A peer that ranks the pieces of the document. As many as fit are kept, in their order."""

    peak_mib: float | None = None

    def pieces(self, text: str) -> list[str]:
        """Pieces that make the text when they are joined."""
        raise NotImplementedError

    def ranked(self, pieces: Sequence[str], question: str) -> Sequence[int]:
        """The indices of all pieces, the most wanted first."""
        raise NotImplementedError

    async def shortened(self, divided: Divided, most_tokens: int, count: Count) -> tuple[str, float]:
        started = time.perf_counter()
        pieces = self.pieces(divided.document)
        order = self.ranked(pieces, divided.question)
        took_ms = (time.perf_counter() - started) * 1e3
        fitting, beyond = 0, len(order)
        while fitting < beyond:
            tried = (fitting + beyond + 1) // 2
            if await count(divided.prompt(_joined(pieces, order[:tried]))) <= most_tokens:
                fitting = tried
            else:
                beyond = tried - 1
        return _joined(pieces, order[:fitting]), took_ms


async def shorten(prompt: dict[str, Any], peer: Peer, most_tokens: int, count: Count) -> tuple[dict[str, Any], float]:
    """The prompt with the document that the peer shortened, and the milliseconds it took; unchanged if it fits."""
    if await count(prompt) <= most_tokens:
        return prompt, 0.0
    divided = divide(prompt)
    document, took_ms = await peer.shortened(divided, most_tokens, count)
    return divided.prompt(document), took_ms


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its text as one string, as other engines take it."""
    return {"role": message["role"], "content": _text(message["content"])}


def sentences(text: str) -> list[str]:
    """Passages of whole sentences, of at most 100 words unless a sentence has more; a line end ends a passage."""
    found = []
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        passage, words = "", 0
        for sentence in _split(line):
            size = len(sentence.split())
            if passage and words + size > _WORDS:
                found.append(passage)
                passage, words = "", 0
            passage, words = passage + sentence, words + size
        found.append(passage)
    return found


def _split(line: str) -> list[str]:
    """Sentences with the white space after them."""
    ends = [match.end() for match in _SENTENCE.finditer(line)]
    return [line[start:end] for start, end in zip([0, *ends], [*ends, len(line)], strict=True) if end > start]


def _joined(pieces: Sequence[str], chosen: Sequence[int]) -> str:
    return "".join(pieces[index] for index in sorted(chosen))


def _length(message: dict[str, Any]) -> int:
    return len(_text(message["content"])) if message["role"] == "user" else -1


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _parts(content: Any) -> tuple[str, str]:
    """Document and question: parts that are marked, or the last line and what is before it."""
    if not isinstance(content, str) and any(part.get("document") for part in content):
        documents = [part["text"] for part in content if part.get("document")]
        return "".join(documents), "".join(part["text"] for part in content if not part.get("document"))
    text = _text(content)
    start = text.rstrip().rfind("\n") + 1
    return text[:start], text[start:]
