"""Load against SGLang's own server and against presift: same weights, settings and prompts. See README.md beside this.

PYTHONPATH=tests/bench .venv/bin/python -m load.run --target DIR --draft DIR --results DIR [--rates 0.1,inf] ...
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from load import servers
from load.generators import GENERATORS, Load, Report
from load.table import Cell, median, routes, rows, table
from load.trace import Count, bodies, prompt_tokens, words_of, write
from real_engine import machine
from transformers import PreTrainedTokenizerFast

from presift.core.plan import Route

SGLANG = "sglang"
# Fields of SglangOptions, which both sides take.
_ENGINE = {
    "device": str,
    "dtype": str,
    "context_tokens": int,
    "kv_pool_tokens": int,
    "prefill_chunk_tokens": int,
    "attention_backend": str,
    "threads": int,
    "max_running": int,
    "tensor_parallel": int,
}


def main() -> int:
    options = _parser().parse_args()
    folder: Path = options.results.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _prepare(options, folder)
    for cell in _cells(options):
        path = _path(folder, cell)
        if path.exists():
            continue
        print(f"== {cell.name}", file=sys.stderr, flush=True)
        report = _measure(cell, options, folder)
        path.with_suffix(".part").write_text(json.dumps(report))
        path.with_suffix(".part").rename(path)
    reports = [(cell, json.loads(_path(folder, cell).read_text())) for cell in _cells(options)]
    found = rows(reports, prompt_tokens(folder))
    print(table(found, routes(reports)))
    medians = {" ".join(key): asdict(median(measured)) for key, measured in found.items()}
    print(json.dumps({"bench": "load", **machine(), "settings": _settings(options), "rows": medians}))
    return 0


def _path(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.name}.json"


def _cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Repetitions come last, so that a run that is stopped has measured all sides equally often."""
    sides = [*([SGLANG] if options.sglang else []), *(f"presift {route}" for route in options.routes)]
    for repetition in range(options.repetitions):
        for generator in options.generators:
            for rate in options.rates:
                for side in sides:
                    yield Cell(generator, rate, side, repetition)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What every cell of a folder has in common."""
    names = ("target", "draft", "count", "tokens", "answer", "seed", "budget", *_ENGINE)
    return {name: getattr(options, name) for name in names}


def _prepare(options: argparse.Namespace, folder: Path) -> None:
    """Write the trace. Exits if the folder has measurements with other settings."""
    settings, file = json.loads(json.dumps(_settings(options))), folder / "settings.json"
    if not file.exists():
        count = _counter(options.target)
        least, most = (words_of(tokens, count) for tokens in options.tokens)
        write(folder, bodies(options.count, options.seed, (least, most), options.answer), count)
        file.write_text(json.dumps(settings, indent=2) + "\n")
    for name, value in json.loads(file.read_text()).items():
        if settings[name] != value:
            sys.exit(f"{name} is {settings[name]}; {folder} was measured with {value}. Take another --results.")


def _counter(target: str) -> Count:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(target)
    template = {"tokenize": True, "add_generation_prompt": True, "return_dict": True}
    return lambda messages: len(tokenizer.apply_chat_template(messages, **template)["input_ids"])


def _measure(cell: Cell, options: argparse.Namespace, folder: Path) -> Report:
    """In processes of its own: no cache knows the prompts of another cell."""
    work = folder / "work" / cell.name
    work.mkdir(parents=True, exist_ok=True)
    with _server(cell.side, options, work) as server:
        model = _first_model(server.url)
        _warm_up(server.url, model)
        load = Load(
            url=server.url,
            model=model,
            tokenizer=Path(options.target),
            trace=folder / "requests.jsonl",
            rate=f"{cell.rate:g}",
            seed=options.seed + cell.repetition,
            extra=_extra(cell.side, options),
            folder=work,
        )
        before = Counter(server.applied())
        report = GENERATORS[cell.generator].send(load)
        return report | {"applied": dict(Counter(server.applied()) - before)}


def _server(side: str, options: argparse.Namespace, work: Path) -> AbstractContextManager[servers.Server]:
    engine = {name: getattr(options, name) for name in _ENGINE if getattr(options, name) is not None}
    if side == SGLANG:
        return servers.sglang(options.target, engine, work)
    return servers.presift(options.target, options.draft, engine, work)


def _extra(side: str, options: argparse.Namespace) -> dict[str, Any]:
    if side == SGLANG:
        return {}
    return {"presift": {"route": side.removeprefix("presift "), "budget": options.budget}}


def _first_model(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as answer:
        return str(json.load(answer)["data"][0]["id"])


def _warm_up(url: str, model: str) -> None:
    """The first pass of an engine is slower than all others. The prompt shares no words with the trace."""
    body = {"model": model, "messages": [{"role": "user", "content": "Please say hello."}], "max_tokens": 8}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=600) as answer:
        answer.read()


def _words(choices: Sequence[str]) -> Any:
    def parse(words: str) -> list[str]:
        found = [word.strip() for word in words.split(",") if word.strip()]
        for word in found:
            if word not in choices:
                raise argparse.ArgumentTypeError(f"has '{word}'; each must be one of {', '.join(choices)}")
        return found

    return parse


def _rates(words: str) -> list[float]:
    found = [float(word) for word in words.split(",")]
    if min(found) <= 0:
        raise argparse.ArgumentTypeError(f"has {min(found):g}; each must be above 0, or inf")
    return found


def _folder(words: str) -> str:
    """The generators run in other folders."""
    return str(Path(words).resolve())


def _range(words: str) -> list[int]:
    least, most = (int(word) for word in words.split(","))
    if not 0 < least <= most:
        raise argparse.ArgumentTypeError(f"is {words}; it must be the least and the largest length: 1500,2500")
    return [least, most]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=_folder, required=True, help="folder of both sides' target model")
    parser.add_argument("--draft", type=_folder, required=True, help="folder of the draft model")
    parser.add_argument("--results", type=Path, required=True, help="folder of results; finished cells stay")
    parser.add_argument("--rates", type=_rates, default="0.1,0.5,inf", help="requests per second; inf: all at once")
    parser.add_argument("--routes", type=_words(["auto", *Route]), default="auto", help="presift's routes to measure")
    parser.add_argument("--no-sglang", dest="sglang", action="store_false", help="run only presift")
    parser.add_argument(
        "--generators",
        type=_words(list(GENERATORS)),
        default="bench_serving",
        help="or aiperf, or both",
    )
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each cell, each with fresh processes")
    parser.add_argument("--count", type=int, default=40, help="number of requests in the trace")
    parser.add_argument("--tokens", type=_range, default="5000,8000", help="least and largest long document")
    parser.add_argument("--answer", type=int, default=64, help="number of tokens of each answer")
    parser.add_argument("--seed", type=int, default=1, help="seed of the trace")
    parser.add_argument("--budget", type=json.loads, default={}, help="presift's Budget, as JSON")
    for name, kind in _ENGINE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="as for python -m presift.target")
    return parser


if __name__ == "__main__":
    sys.exit(main())
