"""AUTO against each fixed route on one mixed trace, through the whole stack; and how well TTFT is predicted.

    python tests/bench/auto_trace.py run MODE [--pair small | demo] [--count 150]
    python tests/bench/auto_trace.py report [--pair ...] [--plot FILE]

MODE is auto, a route, or mixed (routes in turn, for predictions); each starts a stack of its own with empty caches and
asks one request after the other. `small` is SmolLM2-135M with its own first six layers as the draft: the quality is
poor, costs are in proportion. Results go to `results/auto_trace_PAIR_MODE.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from request_trace import Entry, trace
from trace_table import MODES, plot, report

from presift.cli.settings import CliSettings
from presift.cli.stack.stack import LocalStack, StackOptions
from presift_client import Client, PresiftError

RESULTS = Path(__file__).parent / "results"
MODELS = CliSettings().home / "models"
SMALL_LAYERS = 6
PAIRS: dict[str, dict[str, Any]] = {
    "small": {
        "words": (600, 2400),
        "threshold": 1000,
        "budgets": [
            {},
            {"max_prompt_tokens": 768},
            {"max_kv_tokens": 384},
            {"max_ttft_ms": 1500},
            {"max_ttft_ms": 4000},
        ],
    },
    "demo": {
        "words": (500, 2200),
        "threshold": 800,
        "budgets": [{}, {"max_prompt_tokens": 512}, {"max_kv_tokens": 384}, {"max_ttft_ms": 15_000}],
    },
}
_ROUTES = ("full", "spec_pc", "spec_kv", "spec_kv_pc")


def folders(pair: str, scratch: Path) -> tuple[str, str]:
    """Draft and target."""
    if pair == "demo":
        return tuple(str(MODELS / f"qwen2.5-coder-{size}-instruct") for size in ("0.5b", "1.5b"))  # type: ignore[return-value]
    target = MODELS / "smollm2-135m-instruct"
    return str(first_layers(target, SMALL_LAYERS, scratch / "draft")), str(target)


def first_layers(model: Path, layers: int, folder: Path) -> Path:
    """A model of the first layers of another, in `folder`."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {}
    for name, weight in load_file(model / "model.safetensors").items():
        parts = name.split(".")
        if "layers" not in parts or int(parts[parts.index("layers") + 1]) < layers:
            weights[name] = weight
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def run(mode: str, pair: str, count: int) -> None:
    settings = PAIRS[pair]
    entries = trace(count, 20261121, settings["words"], settings["budgets"])
    with tempfile.TemporaryDirectory(prefix="presift-trace-") as name:
        scratch = Path(name)
        draft, target = folders(pair, scratch)
        flags = ["--compress-above-tokens", str(settings["threshold"]), "--capacity", "768", "--kv-capacity", "384"]
        flags += ["--cascade-capacity", "1024"]
        options = StackOptions(draft, target, target, scratch / "logs", "127.0.0.1:0", orchestrator_flags=flags)
        with LocalStack(options, print) as stack, Client(stack.address) as client:
            wait_until_calibrated(client)
            rows = []
            for number, entry in enumerate(entries):
                rows.append(ask(client, entry, mode if mode != "mixed" else _ROUTES[number % 4]))
                if number % 10 == 9:
                    print(f"{mode}: {number + 1} of {len(entries)}", flush=True)
    path = RESULTS / f"auto_trace_{pair}_{mode}.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def wait_until_calibrated(client: Client) -> None:
    """As a deployment that nobody calls in its first seconds."""
    until = time.monotonic() + 30
    while sum(speed.observations for speed in client.info().speeds if speed.stage == "target") < 3:
        if time.monotonic() > until:
            return
        time.sleep(0.5)


def ask(client: Client, entry: Entry, route: str) -> dict[str, Any]:
    """What was applied and what it took."""
    row: dict[str, Any] = {"kind": entry.kind, "budget": entry.budget, "asked": route}
    try:
        answer = client.generate(
            messages=entry.messages, route=route, max_new_tokens=4, temperature=0.0, **entry.budget
        )
    except PresiftError as error:
        return row | {"error": str(error)[:200]}
    decision, usage = answer.decision, answer.usage
    row |= {name: getattr(decision, name) for name in ("route", "reason", "prompt_tokens", "kept_tokens", "kv_tokens")}
    row |= {name: getattr(decision, name) for name in ("cache", "predicted_ttft_ms", "draft_ms", "prefill_ms")}
    return row | {name: getattr(usage, name) for name in ("ttft_ms", "cached_tokens", "reused_entry", "target_ttft_ms")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("mode", nargs="?", choices=(*MODES, "mixed"), default="auto")
    parser.add_argument("--pair", choices=PAIRS, default="small")
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--plot", default=None)
    options = parser.parse_args()
    if options.command == "run":
        run(options.mode, options.pair, options.count)
        return 0
    found = {}
    for mode in (*MODES, "mixed"):
        with suppress(FileNotFoundError):
            found[mode] = json.loads((RESULTS / f"auto_trace_{options.pair}_{mode}.json").read_text())
    print(report(found, {"max_prompt_tokens": 768}))
    if options.plot:
        plot(found, {"max_prompt_tokens": 768}, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
