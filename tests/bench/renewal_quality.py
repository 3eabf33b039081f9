"""Quality of renewal on answers that need many places of the prompt: six planted facts, "list all of them in order".

One engine, the target alone: `full` first, then KV dropping as without renewal, with renewal, and with the first tokens
on the full KV. The lookahead of the draft is generated beforehand, greedily. Rows go to a JSONL file as they come, and
those that are there are skipped.

    PYTHONPATH=services python -u tests/bench/renewal_quality.py TARGET DRAFT results.jsonl
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np

from presift.core.generation import Sampling
from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.models.folder import resolve
from presift.target.engine import Finished, GenerateRequest
from presift.target.sglang.arguments import SglangOptions
from presift.target.sglang.engine import SglangEngine

TEXTS = int(os.environ.get("TEXTS", "4"))
TOKENS = 2200
LOOKAHEAD = 24
ANSWER_TOKENS = 120
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "orange", "purple", "silver")
TOWNS = ("Lyon", "Porto", "Ghent", "Turku", "Graz", "Bergen", "Riga", "Trieste", "Split", "Cork", "Basel", "Vigo")
GOODS = ("rotors", "valves", "gaskets", "spindles", "brackets", "nozzles", "flanges", "bearings", "washers", "bolts")
FILLER = (
    "The {a} arrived after the rain and nobody in {t} had expected it.",
    "In {t} the old workshop was painted, and the {a} were moved to the cellar.",
    "A letter about the {a} was read aloud at the meeting, and then it was filed.",
    "Some said that {t} had changed; others only counted the {a} and went home.",
    "The road to {t} was closed for a week because of the snow.",
)
METHODS: dict[str, dict[str, int] | None] = {
    "full": None,
    "today 512": {"capacity": 512},
    "renewal 512": {"capacity": 512, "renew_every": 12, "first_full_tokens": 16},
    "today 256": {"capacity": 256},
    "renewal 256": {"capacity": 256, "renew_every": 12, "first_full_tokens": 16},
    "renewal 512, begun with the lookahead": {"capacity": 512, "renew_every": 12},
}


def text_of(seed: int, count: Any) -> tuple[str, list[str]]:
    """A text of about TOKENS tokens, and the six numbers that are planted in it, in order."""
    dice = random.Random(f"renewal {seed}")
    numbers = [str(number) for number in dice.sample(range(1000, 9999), 6)]
    colours = dice.sample(COLOURS, 6)
    facts = [
        f"Note: the code of the {colour} crate is {number}." for colour, number in zip(colours, numbers, strict=True)
    ]
    lines: list[str] = []
    while count("\n".join(lines)) < TOKENS:
        lines += [dice.choice(FILLER).format(a=dice.choice(GOODS), t=dice.choice(TOWNS)) for _ in range(8)]
    for place, fact in enumerate(facts):
        lines.insert(int((place + 0.5) * len(lines) / len(facts)), fact)
    return "\n".join(lines), numbers


def prompt_of(tokenizer: Any, text: str) -> list[int]:
    question = "List all six crates of the notes in the text, in order, one a line, each with its colour and its code."
    messages = [{"role": "user", "content": f"{text}\n\n{question}"}]
    return list(tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)))


async def answer(
    engine: Any, ids: list[int], plan: KvPlan | None, salt: str, tokens: int
) -> tuple[list[int], Finished]:
    request = GenerateRequest(np.array(ids, dtype=np.uint32), Sampling(max_new_tokens=tokens), salt, plan)
    given: list[int] = []
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return given, event
            given.extend(event.token_ids)
    raise AssertionError("the stream has no end")


async def started(folder: str) -> SglangEngine:
    options = SglangOptions(
        resolve(folder), dtype="bfloat16", kv_pool_tokens=8192, prefill_chunk_tokens=4096, threads=2
    )
    engine = SglangEngine(options)
    await engine.start()
    return engine


def plan_of(method: dict[str, int] | None, lookahead: list[int]) -> KvPlan | None:
    if method is None:
        return None
    policy = SpecKv(**method, renew_window=32)
    return KvPlan(policy, lookahead_token_ids=() if policy.first_full_tokens else tuple(lookahead[:LOOKAHEAD]))


async def lookaheads(folder: str, prompts: list[list[int]], path: Path) -> list[list[int]]:
    if path.exists():
        return json.loads(path.read_text())
    engine = await started(folder)
    found = [(await answer(engine, ids, None, "", LOOKAHEAD))[0] for ids in prompts]
    await engine.stop()
    path.write_text(json.dumps(found))
    return found


async def main(target: str, draft: str, results: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target)
    texts = [text_of(seed, lambda text: len(tokenizer.encode(text))) for seed in range(TEXTS)]
    prompts = [prompt_of(tokenizer, text) for text, _ in texts]
    guesses = await lookaheads(draft, prompts, results.with_suffix(".lookahead.json"))
    done = {(row["text"], row["method"]) for row in map(json.loads, results.open())} if results.exists() else set()
    engine = await started(target)
    for number, (_, numbers) in enumerate(texts):
        for name, method in METHODS.items():
            if (number, name) in done:
                continue
            begun = time.monotonic()
            tokens, end = await answer(engine, prompts[number], plan_of(method, guesses[number]), "", ANSWER_TOKENS)
            text = tokenizer.decode(tokens)
            row = {
                "text": number,
                "method": name,
                "found": sum(each in text for each in numbers),
                "prompt": len(prompts[number]),
                "answer": len(tokens),
                "held": end.kv_tokens,
                "renewals": [end.renewals, end.renewals_skipped],
                "coverage": end.coverage,
                "seconds": round(time.monotonic() - begun, 1),
                "said": text,
            }
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print({key: value for key, value in row.items() if key != "said"}, flush=True)
    await engine.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
