"""What greedy answers gain from a verified lookahead: time to first token, decode steps, and the whole answer's time.

One engine, the target. Each prompt is read once before, as when the draft works meanwhile. Then the same lookahead is
sent twice, in alternating order: by a plain greedy caller, which begins with the accepted tokens, and by one with a
logit bias of 0, which may not. The lookahead is the target's own answer, and that of a draft. Prints a table and one
JSON line. Without TARGET it is a model of random weights with real proportions, which has no draft.

    PYTHONPATH=services:tests/bench python -u tests/bench/verified_lookahead.py [TARGET] [--draft DRAFT] [--prompts 4]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from decode_step import SIZES
from real_engine import machine, prompts, random_folder, running
from transformers import AutoTokenizer

from presift.core.answer import AnswerDelta, Finished
from presift.core.generation import Sampling
from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.models.folder import ModelFolder, resolve
from presift.target.engine import GenerateRequest

CAPACITY, LOOKAHEAD, ANSWER_TOKENS = 256, 24, 48
OPTIONS = {"kv_pool_tokens": 16_384, "prefill_chunk_tokens": 4096, "threads": 2}
PROMPT_TOKENS = 700
CALLERS: dict[str, dict[str, Any]] = {"verified": {}, "decoded": {"logit_bias": {0: 0.0}}}
GOODS = ("rotors", "valves", "gaskets", "spindles", "brackets", "nozzles", "flanges", "bearings", "washers", "bolts")


def prompt_of(tokenizer: Any, seed: int) -> list[int]:
    """A list of rooms and what they hold, with a question about six of them."""
    dice, lines = random.Random(seed), list[str]()
    while len(tokenizer.encode("\n".join(lines))) < PROMPT_TOKENS:
        goods, more = dice.sample(GOODS, 2)
        lines.append(f"Room {len(lines) + 1} holds {dice.randrange(10, 99)} {goods}; the {more} were moved elsewhere.")
    rooms = sorted(dice.sample(range(1, len(lines) + 1), 6))
    question = f"What do the rooms {', '.join(map(str, rooms))} hold? One line each."
    messages = [{"role": "user", "content": "\n".join([*lines, "", question])}]
    return list(tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)))


async def answer(
    engine: Any, ids: list[int], plan: KvPlan | None = None, **sampling: Any
) -> tuple[list[int], dict[str, Any]]:
    """The tokens, and what the answer cost: `ttft_ms`, `total_ms`, `steps` of the decoder, and the tokens accepted."""
    wanted = Sampling(**{"max_new_tokens": ANSWER_TOKENS} | sampling)
    request = GenerateRequest(np.array(ids, dtype=np.uint32), wanted, "", plan)
    loop = asyncio.get_running_loop()
    begun, first, given = loop.time(), None, []
    async for event in engine.generate(request):
        if isinstance(event, AnswerDelta):
            first = first or loop.time()
            given.extend(event.token_ids)
        elif isinstance(event, Finished):
            ended = loop.time()
            times = {"ttft_ms": ((first or ended) - begun) * 1e3, "total_ms": (ended - begun) * 1e3}
            steps = event.completion_tokens - event.accepted_tokens
            return given, {**times, "steps": steps, "accepted": event.accepted_tokens}
    raise AssertionError("the stream has no end")


async def lookaheads(folder: str, texts: list[list[int]]) -> list[list[int]]:
    async with running(resolve(folder), **OPTIONS) as engine:
        return [(await answer(engine, ids, max_new_tokens=LOOKAHEAD))[0] for ids in texts]


async def measure(
    target: ModelFolder, texts: list[list[int]], drafted: list[Any], **sampling: Any
) -> list[dict[str, Any]]:
    rows = []
    async with running(target, **OPTIONS) as engine:
        for number, (ids, draft) in enumerate(zip(texts, drafted, strict=True)):
            own, _ = await answer(engine, ids, **sampling)
            for source, lookahead in {"target": own[:LOOKAHEAD], "draft": draft}.items():
                if lookahead is None:
                    continue
                found = {}
                for place, name in enumerate(list(CALLERS)[:: 1 if number % 2 else -1]):
                    # Another capacity, so that the second does not find the entry of the first.
                    plan = KvPlan(SpecKv(CAPACITY - place), lookahead_token_ids=tuple(lookahead))
                    found[name] = await answer(engine, ids, plan, **sampling, **CALLERS[name])
                tokens, cost = found["verified"]
                is_full = tokens[: cost["accepted"]] == own[: cost["accepted"]]
                rows.append({"lookahead": source, "tokens": len(ids), "begins_as_full": is_full})
                rows[-1].update({name: cost for name, (_, cost) in found.items()})
                print(json.dumps(rows[-1]), file=sys.stderr)
            await engine.flush()
    return rows


def main() -> int:
    options = _parser().parse_args()
    if options.target is None:
        keeper, folder = random_folder(**SIZES)
        texts = [text.tolist() for text in prompts(options.prompts, PROMPT_TOKENS, SIZES["vocab_size"])]
        with keeper:
            rows = asyncio.run(measure(folder, texts, [None] * len(texts), ignore_eos=True))
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.target)
        texts = [prompt_of(tokenizer, seed) for seed in range(options.prompts)]
        drafted = asyncio.run(lookaheads(options.draft, texts)) if options.draft else [None] * len(texts)
        rows = asyncio.run(measure(resolve(options.target), texts, drafted))
    print(f"{'lookahead':10}{'caller':10}{'accepted':>9}{'TTFT ms':>9}{'steps':>7}{'answer ms':>11}")
    for source in sorted({row["lookahead"] for row in rows}):
        for name in CALLERS:
            costs = [row[name] for row in rows if row["lookahead"] == source]
            mean = {key: statistics.fmean(cost[key] for cost in costs) for key in costs[0]}
            print(
                f"{source:10}{name:10}{mean['accepted']:9.1f}{mean['ttft_ms']:9.0f}{mean['steps']:7.1f}"
                f"{mean['total_ms']:11.0f}"
            )
    print(json.dumps({"bench": "verified_lookahead", **machine(), "rows": rows}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?")
    parser.add_argument("--draft")
    parser.add_argument("--prompts", type=int, default=4)
    return parser


if __name__ == "__main__":
    sys.exit(main())
