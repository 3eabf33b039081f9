"""Time to the first token where several prompts come at once, through the whole stack: full against spec_kv.

    python tests/bench/first_token_stack.py [--pair small | demo] [--requests 6,12] [--tokens 2000] [--rounds 3]

One stack at default settings, but for the threshold, which these prompts must exceed. A round asks distinct prompts at
the same moment, first with one method, then other prompts with the next; the order turns from round to round. `spec_kv`
is the route with all defaults, `draft` the same with the draft's lookahead. Times are the client's. Prints a table and
one JSON line; fails if `spec_kv` takes more than 1.1 times as long as full.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

from answer_tasks import make
from auto_trace import PAIRS, folders, wait_until_calibrated
from real_engine import machine
from transformers import PreTrainedTokenizerFast

from presift.cli.stack.stack import LocalStack, StackOptions
from presift_client import AsyncClient, Client, Decision, Delta, Usage

LIMIT = 1.1
METHODS: dict[str, dict[str, Any]] = {
    "full": {"route": "full"},
    "spec_kv": {"route": "spec_kv"},
    "draft": {"route": "spec_kv", "kv_lookahead": "draft"},
}
FORMS = ("lists", "streets", "events")


def main() -> int:
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="presift-first-token-") as name:
        rows = _all(options, Path(name))
    print(f"{'requests':>8} {'':8}{'mean TTFT ms':>13}{'of full':>9}{'makespan s':>12}  lookahead, renewals, skipped")
    for count, found in rows.items():
        for name, row in found.items():
            share = row["ttft_ms"] / found["full"]["ttft_ms"]
            print(f"{count:8} {name:8}{row['ttft_ms']:13.0f}{share:9.2f}{row['makespan_s']:12.2f}", end="")
            print(f"  {row['lookahead']}, {row['renewals']}, {row['skipped']}")
    print(json.dumps({"bench": "first_token_stack", **vars(options), **machine(), "rows": rows}))
    return int(any(found["spec_kv"]["ttft_ms"] > LIMIT * found["full"]["ttft_ms"] for found in rows.values()))


def _all(options: argparse.Namespace, scratch: Path) -> dict[int, dict[str, Any]]:
    draft, target = folders(options.pair, scratch)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(target)
    flags = ["--compress-above-tokens", str(options.tokens // 2)]
    stack_options = StackOptions(draft, target, target, scratch / "logs", "127.0.0.1:0", orchestrator_flags=flags)
    with LocalStack(stack_options, print) as stack:
        with Client(stack.address) as client:
            wait_until_calibrated(client)
        return asyncio.run(_rows(options, stack.address, lambda text: len(tokenizer.encode(text))))


async def _rows(options: argparse.Namespace, address: str, count: Any) -> dict[int, dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    seed = 1000
    async with AsyncClient(address) as client:
        for requests in (int(number) for number in options.requests.split(",")):
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
            for number in range(options.rounds):
                names = list(METHODS)
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    texts = [_text(options.tokens, seed + place, count) for place in range(requests)]
                    seed += requests
                    found[name].append(await _round(client, texts, options.answer, METHODS[name]))
                    print(f"{requests} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
            rows[requests] = {name: _together(results) for name, results in found.items()}
    return rows


def _text(tokens: int, seed: int, count: Any) -> str:
    document = make(FORMS[seed % len(FORMS)], tokens, seed, count)
    return document.prompt(document.questions[0])


async def _round(client: AsyncClient, texts: list[str], answer: int, method: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    asked = [_ask(client, text, max_new_tokens=answer, temperature=0.0, **method) for text in texts]
    found = await asyncio.gather(*asked)
    return {
        "ttft_ms": statistics.mean(first for first, _, _ in found) * 1e3,
        "makespan_s": time.perf_counter() - started,
        "lookahead": "/".join(sorted({str(decision.kv_lookahead) for _, decision, _ in found})),
        "renewals": sum(usage.renewals for _, _, usage in found),
        "skipped": sum(usage.renewals_skipped for _, _, usage in found),
    }


async def _ask(client: AsyncClient, text: str, **asked: Any) -> tuple[float, Decision, Usage]:
    """Seconds until the first text, the decision and the usage."""
    started, first, decision = time.perf_counter(), 0.0, None
    async with aclosing(client.stream(messages=[{"role": "user", "content": text}], **asked)) as events:
        async for event in events:
            if isinstance(event, Decision):
                decision = event
            elif isinstance(event, Delta):
                first = first or time.perf_counter() - started
            elif isinstance(event, Usage) and decision:
                return first or time.perf_counter() - started, decision, event
    raise AssertionError("the stream has no end")


def _together(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds; the lookaheads of all."""
    medians = {key: statistics.median(row[key] for row in results) for key in results[0] if key != "lookahead"}
    return {**medians, "lookahead": "/".join(sorted({row["lookahead"] for row in results}))}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=PAIRS, default="small")
    parser.add_argument("--requests", default="6,12")
    parser.add_argument("--tokens", type=int, default=2_000, help="of each prompt")
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    return parser


if __name__ == "__main__":
    sys.exit(main())
