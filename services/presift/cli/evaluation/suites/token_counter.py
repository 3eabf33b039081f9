"""How many tokens the target's tokenizer makes of a prompt: the stack is asked, so that no tokenizer is needed here."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from presift.cli.evaluation.arms import BASELINE
from presift_client import AsyncClient, Overloaded, PromptTooLong

_NUMBER = re.compile(r"\d+")


class TokenCounter:
    """Counts by calls of Explain. They raise PresiftError."""

    def __init__(self, client: AsyncClient, deadline_s: float) -> None:
        self._client = client
        self._deadline_s = deadline_s

    async def text(self, text: str) -> int:
        """The tokens of a plain text, without a chat template."""
        # A service reads no empty prompt.
        return await self._count({"prompt": text}) if text else 0

    async def chat(self, messages: list[dict[str, str]]) -> int:
        """The tokens of a chat, with its template."""
        return await self._count({"messages": messages})

    async def _count(self, prompt: dict[str, Any]) -> int:
        while True:
            try:
                explanation = await self._client.explain(
                    **prompt, route=str(BASELINE.route), max_new_tokens=1, deadline_s=self._deadline_s
                )
                return explanation.decision.prompt_tokens
            except PromptTooLong as error:
                # Longer than the context: the error has the count, or the largest number that is counted to.
                number = _NUMBER.search(error.value)
                if number is None:
                    raise
                return int(number[0])
            except Overloaded as error:
                if error.retry_after_s is None:
                    raise
                await asyncio.sleep(error.retry_after_s)
