"""LongLLMLingua: the passages that make the question likely, then the tokens that the question makes likelier."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from peers.child import Child, started
from peers.passages import Count, Divided, sentences

# How often it is asked again, with a smaller or larger target, because it keeps more or fewer tokens than it was told.
_ATTEMPTS = 4
# It may stay this far below its budget.
_NEAR = 0.95


class LongLlmLingua:
    """The text of the attempt that comes nearest to the budget from below. Its time is that of this attempt alone."""

    def __init__(self, child: Child) -> None:
        self._child = child

    @property
    def peak_mib(self) -> float | None:
        return self._child.peak_mib

    async def shortened(self, divided: Divided, most_tokens: int, count: Count) -> tuple[str, float]:
        room = most_tokens - await count(divided.prompt(""))
        passages = [passage.strip() for passage in sentences(divided.document) if passage.strip()]
        best, best_tokens, best_ms = "", 0, 0.0
        target = float(room)
        for _ in range(_ATTEMPTS):
            if target < 1:
                break
            found = await self._child.ask(
                {"passages": passages, "question": divided.question.strip(), "target_tokens": round(target)}
            )
            text = found["text"].rstrip() + "\n\n"
            tokens = await count(divided.prompt(text)) - (most_tokens - room)
            if best_tokens < tokens <= room:
                best, best_tokens, best_ms = text, tokens, found["ms"]
            if _NEAR * room <= tokens <= room:
                break
            target *= room / max(1, tokens) * (1 if tokens < room else _NEAR)
        return best, best_ms


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[LongLlmLingua]:
    """LongLLMLingua with the model in `folder`, after a first text that is not measured."""
    async with started("longllmlingua", "longllmlingua.py", str(folder)) as child:
        await child.ask({"passages": ["One.", "Two."], "question": "Which?", "target_tokens": 4})
        child.peak_mib = None
        yield LongLlmLingua(child)
