"""A summary as one self-contained page of HTML: no scripts, fonts or external addresses. All text is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from presift.cli.evaluation.report import COST, LEGEND, QUALITY, case_line, cells, heading
from presift.cli.evaluation.results import Answer, Result
from presift.cli.evaluation.summary import Outcome, Summary
from presift.cli.render.heat import HEAT_LEVELS, HOLD_LEVELS, Piece, pieces, printable
from presift.cli.render.lines import decision_line
from presift.cli.render.templates import template
from presift_client import Explanation


@dataclass(frozen=True, slots=True)
class Case:
    """A worst case as text. `pieces` are the prompt, empty without an explanation: `decision` then says why. They show
    importance if the draft scored it (`is_scored`), and KV that only some heads keep (`is_partial`)."""

    title: str
    arm: str
    expected: str
    full: str
    answer: str
    decision: str
    pieces: list[Piece]

    @property
    def is_scored(self) -> bool:
        return any(piece.importance > 0 for piece in self.pieces)

    @property
    def is_partial(self) -> bool:
        return any(0 < piece.hold < HOLD_LEVELS for piece in self.pieces)


def page_of(summary: Summary, header: Mapping[str, str], explained: Mapping[int, Explanation | str]) -> str:
    """The page, as HTML. `header` are names and values. `explained`: by the number of a case, its explanation, or why
    there is none."""
    columns = QUALITY | COST
    shown = [name for name in columns if any(columns[name](row) for row in summary.tables[0].rows)]
    return template("evaluation.html").render(
        header={name: printable(value) for name, value in header.items()},
        notes=[printable(note) for note in summary.notes],
        headings=shown,
        tables=[
            (heading(table), [cells({name: columns[name] for name in shown}, row) for row in table.rows])
            for table in summary.tables
        ],
        legend=LEGEND,
        cases=[_case(case, explained.get(number, "")) for number, case in enumerate(summary.cases)],
        heat_levels=HEAT_LEVELS,
        hold_levels=HOLD_LEVELS,
    )


def _case(case: Outcome, explained: Explanation | str) -> Case:
    return Case(
        title=printable(case_line(case)),
        arm=case.arm.name,
        expected=printable(", ".join(case.example.expected)),
        full=_text(case.full),
        answer=_text(case.result),
        decision=printable(decision_line(explained.decision) if isinstance(explained, Explanation) else explained),
        pieces=pieces(explained) if isinstance(explained, Explanation) else [],
    )


def _text(result: Result | None) -> str:
    return printable(result.text) if isinstance(result, Answer) else ""
