"""What the answers say: each arm against `full`, over all prompts and by their length. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from presift.cli.evaluation import statistics
from presift.cli.evaluation.arms import AUTO, BASELINE, Arm
from presift.cli.evaluation.dataset import Example
from presift.cli.evaluation.results import Answer, Failure, Key, Result
from presift.cli.evaluation.statistics import Estimate
from presift.orchestrator.routing.agreement import Agreement, agreement
from presift.orchestrator.routing.facts import count_facts
from presift.orchestrator.routing.quality_gate import LengthBand, length_band

ALL = "all"
_CASES = 10
# Fewer scored prompts show only large losses.
_FEW = 30
# `full` is near the floor if it is right no oftener than by chance and this, near the ceiling from this on.
_ABOVE_CHANCE, _CEILING = 0.1, 0.95


@dataclass(frozen=True, slots=True)
class Outcome:
    """One arm on one example. `score` 0..1 is None if nothing is expected, or without an answer; so is `full_score`.
    `agreement` with `full` is None unless both answered. The length band is None if no arm answered."""

    example: Example
    arm: Arm
    result: Result
    full: Result | None
    band: LengthBand | None
    score: float | None
    full_score: float | None
    agreement: Agreement | None

    @property
    def gain(self) -> float | None:
        """The score less that of `full`; None unless both are known."""
        return None if self.score is None or self.full_score is None else self.score - self.full_score


@dataclass(frozen=True, slots=True)
class Row:
    """One arm over some prompts. Counts in tokens, times in milliseconds; None where there is nothing to count.

    `right` is the share of right answers among the `scored` ones, `of_full` the sum of the scores as a share of that of
    `full` on the same prompts; `wins` and `losses` count those where the score is higher or lower. `agreement` (as the
    quality guard measures it), `facts` and `identical` compare with the answers of `full`. Times and tokens are
    medians: `ttft_ms` of the `first_readings`, `reread_ttft_ms` of the answers whose prompts another arm had read by
    the same models. `instead` counts the answers that another route gave, by route and reason (all of `auto`'s);
    `failed` the errors, by message.
    """

    arm: str
    answers: int
    scored: int
    right: Estimate | None
    of_full: Estimate | None
    wins: int | None
    losses: int | None
    agreement: Estimate | None
    facts: float | None
    identical: float | None
    ttft_ms: float | None
    first_readings: int
    reread_ttft_ms: float | None
    token_ms: float | None
    kv_tokens: float | None
    read_tokens: float | None
    read_share: float | None
    instead: Mapping[str, int]
    failed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Table:
    """A row for each arm, over the prompts of some lengths in tokens ("all", or "1024-2047") or of one kind."""

    lengths: str
    prompts: int
    rows: tuple[Row, ...]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """`tables`: all prompts first, then each length band and each kind, if there are several. `cases` are the worst
    ones, losses first. `missing` counts the answers that another run may give. `notes` say what the numbers cannot
    show."""

    tables: tuple[Table, ...]
    outcomes: tuple[Outcome, ...]
    cases: tuple[Outcome, ...]
    notes: tuple[str, ...]
    missing: int


def summarise(examples: Sequence[Example], arms: Sequence[Arm], results: Mapping[Key, Result], seed: int) -> Summary:
    """The summary of all results of these examples and arms. `seed` is that of the bootstrap."""
    found = [outcome for example in examples for outcome in _outcomes(example, arms, results)]
    tables = [_table(ALL, found, arms, seed)]
    bands = sorted({each.band for each in found if each.band is not None})
    if len(bands) > 1:
        tables += [_table(str(band), [each for each in found if each.band == band], arms, seed) for band in bands]
    kinds = list(dict.fromkeys(each.example.kind for each in found))
    if len(kinds) > 1:
        by_kind = ((kind, [each for each in found if each.example.kind == kind]) for kind in kinds)
        tables += [replace(_table(ALL, some, arms, seed), kind=kind or "none") for kind, some in by_kind]
    missing = len(examples) * len(arms) - sum(not _is_missing(each.result) for each in found)
    return Summary(tuple(tables), tuple(found), worst_cases(found), tuple(notes(tables[0], found, missing)), missing)


def worst_cases(outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    """The answers that lost most against `full`, then those that agree least with it where nothing is expected."""
    lost = [each for each in outcomes if each.arm != BASELINE and each.agreement is not None and _is_bad(each)]
    return tuple(sorted(lost, key=lambda each: (each.gain or 0.0, _degree(each)))[:_CASES])


def notes(table: Table, outcomes: Sequence[Outcome], missing: int) -> list[str]:
    """What must be known to read the table of all prompts."""
    full = next(row for row in table.rows if row.arm == BASELINE.name)
    found = [f"answers missing: {missing}; the same command asks for them again"] if missing else []
    found += _discrimination_notes(full, outcomes)
    for row in table.rows:
        if row.instead:
            counts = ", ".join(f"{count} by {name}" for name, count in row.instead.items())
            routes = "the router's choice" if row.arm == AUTO else "other routes"
            found.append(f"{row.arm}: of {row.answers} answers, {routes} gave {counts}")
        if row.failed:
            message, count = next(iter(row.failed.items()))
            found.append(f"{row.arm}: {sum(row.failed.values())} requests failed; {count} of them: {message}")
    return found


def _discrimination_notes(full: Row, outcomes: Sequence[Outcome]) -> list[str]:
    """Why this set of prompts may not tell a lossy route from `full`."""
    if full.right is None:
        words = "nothing is expected of the answers: agreement is measured, and answers that differ may both be right"
        few = f"only {full.answers} prompts: the intervals are wide" if full.answers < _FEW else None
        return [words] if few is None else [words, few]
    found = []
    if full.scored < _FEW:
        unseen = statistics.wilson(0, full.scored).high
        found.append(
            f"only {full.scored} scored prompts: up to {statistics.losses_by_chance()} more losses than wins may be "
            f"chance, and if none is lost, a route may still lose up to {unseen:.0%} of such prompts"
        )
    chance = fmean(
        1 / len(each.example.choices) if each.example.choices else 0.0 for each in _scored(outcomes, BASELINE)
    )
    right = f"full has {full.right.value:.0%} of the answers right"
    if full.right.value <= chance + _ABOVE_CHANCE:
        by_chance = f" ({chance:.0%} by chance)" if chance else ""
        found.append(f"{right}{by_chance}: there is little to lose, so these prompts cannot tell the routes apart")
    elif full.right.value >= _CEILING:
        found.append(f"{right}: prompts as easy as these may hide what harder ones would lose")
    return found


def _outcomes(example: Example, arms: Sequence[Arm], results: Mapping[Key, Result]) -> Iterable[Outcome]:
    digest = example.digest
    found = {arm: result for arm in arms if (result := results.get(Key(digest, arm.name))) is not None}
    lengths = [result.prompt_tokens for result in found.values() if isinstance(result, Answer)]
    band = length_band(lengths[0]) if lengths else None
    full = found.get(BASELINE)
    for arm, result in found.items():
        compared = _compare(result, full) if isinstance(result, Answer) and isinstance(full, Answer) else None
        yield Outcome(example, arm, result, full, band, _score(example, result), _score(example, full), compared)


def _is_missing(result: Result) -> bool:
    """Whether another run may give an answer."""
    return isinstance(result, Failure) and result.again


def _score(example: Example, result: Result | None) -> float | None:
    return example.score(result.text) if isinstance(result, Answer) else None


def _compare(answer: Answer, full: Answer) -> Agreement:
    """As the quality guard compares."""
    return agreement(answer.token_ids, full.token_ids, count_facts(answer.text, full.text, is_cut=full.is_cut))


def _is_bad(outcome: Outcome) -> bool:
    return _degree(outcome) < 1 if outcome.gain is None else outcome.gain < 0


def _degree(outcome: Outcome) -> float:
    return 0.0 if outcome.agreement is None else outcome.agreement.degree


def _scored(outcomes: Iterable[Outcome], arm: Arm) -> list[Outcome]:
    return [each for each in outcomes if each.arm == arm and each.score is not None]


def _table(lengths: str, outcomes: Sequence[Outcome], arms: Sequence[Arm], seed: int) -> Table:
    rows = tuple(_row(arm, [each for each in outcomes if each.arm == arm], seed) for arm in arms)
    return Table(lengths, len({each.example.id for each in outcomes}), rows)


def _row(arm: Arm, outcomes: Sequence[Outcome], seed: int) -> Row:
    answers = [each.result for each in outcomes if isinstance(each.result, Answer)]
    failures = [each.result.message for each in outcomes if isinstance(each.result, Failure)]
    scores = [each.score for each in outcomes if each.score is not None]
    pairs = [
        (each.score, each.full_score) for each in outcomes if each.score is not None and each.full_score is not None
    ]
    compared = [each.agreement for each in outcomes if each.agreement is not None and arm != BASELINE]
    facts = [each.fact_share for each in compared if each.fact_share is not None]
    is_compared = bool(pairs) and arm != BASELINE
    first = [each.ttft_ms for each in answers if each.first_reading]
    return Row(
        arm=arm.name,
        answers=len(answers),
        scored=len(scores),
        right=statistics.wilson(sum(scores), len(scores)) if scores else None,
        of_full=statistics.ratio([score for score, _ in pairs], [full for _, full in pairs], seed)
        if is_compared
        else None,
        wins=sum(score > full for score, full in pairs) if is_compared else None,
        losses=sum(score < full for score, full in pairs) if is_compared else None,
        agreement=statistics.mean([each.degree for each in compared], seed) if compared else None,
        facts=fmean(facts) if facts else None,
        identical=fmean(each.is_exact for each in compared) if compared else None,
        ttft_ms=_median(first),
        first_readings=len(first),
        reread_ttft_ms=_median(each.ttft_ms for each in answers if not each.first_reading),
        token_ms=_median(each.token_ms for each in answers),
        kv_tokens=_median(each.kv_tokens for each in answers),
        read_tokens=_median(each.read_tokens for each in answers),
        read_share=_median(each.read_tokens / each.prompt_tokens for each in answers),
        instead=_counts(f"{each.route} ({each.reason})" for each in answers if each.route != arm.route),
        failed=_counts(failures),
    )


def _counts(words: Iterable[str]) -> dict[str, int]:
    """The most frequent first."""
    return dict(Counter(words).most_common())


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
