"""Mixed traffic: questions on documents of several lengths on every route, some asked again, some that fail.

Knows the client alone. Which requests come is drawn from a fixed seed; when they come depends on the answers.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from presift_client import Client, Delta, PresiftError

TEXT = (Path(__file__).parents[2] / "demo" / "tz-news.txt").read_text()
QUESTIONS = ("What changed?", "Which countries are named?", "Who reported this?")
DOCUMENT_CHARACTERS = (300, 1000, 2000, 3200)  # of SmolLM2's tokens: a third as many
ROUTES = ("auto", "auto", "spec_pc", "spec_pc", "spec_kv", "spec_kv", "spec_kv_pc", "full")
PAUSE_S = 1.0
# All callers rest for the last part of each wave: only then are answers compared with those of `full`.
WAVE_S, BUSY_S = 60.0, 35.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: keywords of `Client.stream`, and whether its caller leaves after the first words."""

    options: dict[str, Any]
    leaves: bool = False


def drawn(dice: random.Random) -> Ask:
    """The next request. One in 12 fails or is left: a bad budget, a hopeless deadline, a caller who goes."""
    start, size = dice.randrange(2) * 1300, dice.choice(DOCUMENT_CHARACTERS)  # few: documents and requests come again
    parts = [{"text": TEXT[start : start + size]}, {"text": dice.choice(QUESTIONS), "protected": True}]
    messages = [{"role": "system", "content": "Answer from the document."}, {"role": "user", "content": parts}]
    route = dice.choice(ROUTES)
    options: dict[str, Any] = {"messages": messages, "route": route, "max_new_tokens": dice.choice((8, 16, 32))}
    options |= {"temperature": 0.0, "deadline_s": 60.0}
    if route == "auto":
        options |= dice.choice(({"max_prompt_tokens": 256}, {"max_kv_tokens": 256}, {"max_ttft_ms": 2000}))
    fate = dice.randrange(36)
    if fate == 0:
        return Ask(options | {"max_prompt_tokens": 4})
    if fate == 1:
        return Ask(options | {"deadline_s": 0.05})
    return Ask(options, leaves=fate == 2)


def run(address: str, seconds: float, callers: int) -> Counter[str]:
    """Ask for so long. Returns how many requests ended how."""
    end = time.monotonic() + seconds
    with Client(address) as client, ThreadPoolExecutor(callers) as pool:
        return sum(pool.map(lambda seed: _caller(client, random.Random(seed), end), range(callers)), Counter())


def _caller(client: Client, dice: random.Random, end: float) -> Counter[str]:
    ends: Counter[str] = Counter()
    while (now := time.monotonic()) < end:
        if (end - now) % WAVE_S < WAVE_S - BUSY_S:
            time.sleep(0.5)
            continue
        try:
            _asked(client, drawn(dice))
            ends["answered"] += 1
        except PresiftError as error:
            ends[type(error).__name__] += 1
        time.sleep(dice.expovariate(1 / PAUSE_S))
    return ends


def _asked(client: Client, ask: Ask) -> None:
    for event in client.stream(**ask.options):
        if ask.leaves and isinstance(event, Delta):
            return
