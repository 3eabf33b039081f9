"""The table of a load test: one line for each generator, rate and side, the medians over the repetitions."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import chain

import numpy as np
from load.generators import GENERATORS, Report, Sent

# Generator, rate and side.
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One cell, or the medians of equal ones. Rates are of the answered requests; NaN where none was answered."""

    completed: float
    errors: float
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    ttft_p99_ms: float
    gap_p50_ms: float
    gap_p95_ms: float


def row(sent: Sequence[Sent], seconds: float, prompt_tokens: Sequence[int]) -> Row:
    """`prompt_tokens`: lengths of the prompts of the trace. Raises ValueError if more, fewer or others were sent."""
    if len(sent) != len(prompt_tokens):
        raise ValueError(f"{len(sent)} requests were sent; the trace has {len(prompt_tokens)}")
    answered = [each for each in sent if _is_answered(each, prompt_tokens)]
    if not answered and (read := sorted({each.input_tokens for each in sent if not each.error})):
        raise ValueError(f"the server read prompts of {read} tokens; those of the trace have {sorted(prompt_tokens)}")
    ttft = _percentiles([each.first_s for each in answered])
    gaps = _percentiles(list(chain.from_iterable(each.gaps_s for each in answered)))
    return Row(
        len(answered),
        len(sent) - len(answered),
        len(answered) / seconds,
        sum(each.input_tokens for each in answered) / seconds,
        sum(each.output_tokens for each in answered) / seconds,
        *ttft,
        *gaps[:2],
    )


def _is_answered(sent: Sent, prompt_tokens: Sequence[int]) -> bool:
    """A stream that fails keeps its status 200, and generators count it as an answer. It has no first token, or not the
    last chunk, in which the server says how long the prompt was that it read."""
    return not sent.error and sent.first_s > 0 and sent.input_tokens in prompt_tokens


def _percentiles(seconds: list[float]) -> list[float]:
    """p50, p95 and p99 in milliseconds."""
    return [float(each) * 1e3 for each in np.percentile(seconds, [50, 95, 99])] if seconds else [float("nan")] * 3


@dataclass(frozen=True, slots=True)
class Cell:
    """What one run measures. `side`: sglang, or presift and the route that its requests ask for."""

    generator: str
    rate: float
    side: str
    repetition: int

    @property
    def key(self) -> Key:
        """What its repetitions have in common."""
        return self.generator, f"{self.rate:g}", self.side

    @property
    def name(self) -> str:
        return f"{self.generator}-{self.side.replace(' ', '-')}-{self.rate:g}-{self.repetition}"


def rows(reports: Sequence[tuple[Cell, Report]], prompt_tokens: Sequence[int]) -> dict[Key, list[Row]]:
    """A row for each repetition, in the order of the reports."""
    found = dict[Key, list[Row]]()
    for cell, report in reports:
        generator = GENERATORS[cell.generator]
        measured = row(generator.requests(report), generator.seconds(report), prompt_tokens)
        found.setdefault(cell.key, []).append(measured)
    return found


def routes(reports: Sequence[tuple[Cell, Report]]) -> dict[Key, str]:
    """How many requests each of presift's routes answered, in all repetitions: `full 3, spec_pc 9`."""
    found = dict[Key, Counter[str]]()
    for cell, report in reports:
        found.setdefault(cell.key, Counter()).update(report["applied"])
    return {key: ", ".join(f"{route} {count}" for route, count in sorted(each.items())) for key, each in found.items()}


def median(measured: Sequence[Row]) -> Row:
    """Of each column."""
    return Row(*(statistics.median(values) for values in zip(*map(astuple, measured), strict=True)))


def table(found: Mapping[Key, Sequence[Row]], applied: Mapping[Key, str]) -> str:
    """Markdown."""
    heads = [
        "generator",
        "rate/s",
        "side",
        "n",
        "answered",
        "errors",
        "requests/s",
        "input tokens/s",
        "output tokens/s",
    ]
    heads += ["TTFT ms p50", "p95", "p99", "gap ms p50", "p95", "routes"]
    lines = [heads, ["---"] * len(heads)]
    for key, measured in found.items():
        answered, errors, requests, read, written, *times = astuple(median(measured))
        cells = [f"{answered:g}", f"{errors:g}", f"{requests:.3f}", f"{read:.1f}", f"{written:.1f}"]
        cells += [f"{value:.0f}" for value in times]
        lines.append([*key, str(len(measured)), *cells, applied[key]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
