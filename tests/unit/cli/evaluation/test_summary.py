"""What answers say about an arm, and what they cannot say."""

from dataclasses import replace

import pytest

from presift.cli.evaluation.arms import arms_of, readers_of
from presift.cli.evaluation.dataset import Example
from presift.cli.evaluation.report import heading
from presift.cli.evaluation.results import Failure, Key
from presift.cli.evaluation.runner import order
from presift.cli.evaluation.summary import summarise


@pytest.fixture
def rows(compared):
    """As `compared` -> the rows of full and of the arm, over all prompts."""
    return lambda *pairs, **changes: summarise(*compared(*pairs, **changes), 0).tables[0].rows


def test_right_answers_and_their_share_of_full(rows):
    full, arm = rows(*[("yes", "yes")] * 6, *[("yes", "no")] * 3, ("no", "yes"))
    assert (full.right.value, arm.right.value, arm.of_full.value) == pytest.approx((0.9, 0.7, 7 / 9))
    assert (arm.wins, arm.losses) == (1, 3) and (full.wins, full.losses, full.of_full) == (None, None, None)
    assert arm.right.low < 0.7 < arm.right.high and arm.of_full.low < 7 / 9 < arm.of_full.high


def test_agreement_is_the_quality_guards(rows):
    _, arm = rows(("ab", "ab"), ("It has 7 GB", "It has 9 GB"), expected=(), scorer=None)
    assert arm.right is None and arm.identical == 0.5 and arm.facts == 0.5  # of "7 GB" and no facts of "ab"
    assert 0.5 < arm.agreement.value < 1


def test_times_and_tokens_are_medians(rows):
    full, arm = rows(*[("yes", "yes")] * 3)
    assert (full.ttft_ms, full.token_ms, arm.token_ms) == (100, 20, 10)
    assert (arm.kv_tokens, arm.read_tokens, arm.read_share) == (250, 250, 0.25)


def test_rereadings_are_apart(compared, answer):
    examples, arms, results = compared(*[("yes", "yes")] * 3)
    results[Key(examples[0].digest, "full")] = answer("yes", ttft_ms=5.0, first_reading=False)
    full, _ = summarise(examples, arms, results, 0).tables[0].rows
    assert (full.ttft_ms, full.first_readings, full.reread_ttft_ms) == (100, 2, 5)


def test_each_length_has_a_table(compared, answer):
    examples, arms, results = compared(*[("yes", "yes")] * 3)
    results = {key: replace(each, prompt_tokens=9000 if key.prompt == examples[0].digest else 1000)
               for key, each in results.items()}  # fmt: skip
    tables = summarise(examples, arms, results, 0).tables
    assert [(table.lengths, table.prompts) for table in tables] == [("all", 3), ("512-1023", 2), ("8192-16383", 1)]


def test_each_kind_has_a_table(compared):
    examples, arms, results = compared(("yes", "yes"), ("yes", "no"), ("yes", "yes"))
    kinds = ("qa", "", "qa")
    examples = [replace(each, kind=kind) for each, kind in zip(examples, kinds, strict=True)]
    tables = summarise(examples, arms, results, 0).tables
    assert [(table.kind, table.prompts, table.rows[1].losses) for table in tables] == [
        ("", 3, 1), ("qa", 2, 0), ("none", 1, 1),
    ]  # fmt: skip
    assert heading(tables[1]) == "prompts of kind qa: 2"
    assert len(summarise(examples[::2], arms, results, 0).tables) == 1


def test_failed_and_missing_answers(compared):
    failure = Failure("PromptTooLong", "too long")
    summary = summarise(*compared(("yes", "yes"), (failure, "yes"), ("yes", None), (failure, failure)), 0)
    full, arm = summary.tables[0].rows
    assert (full.answers, arm.answers, arm.scored, arm.losses, arm.of_full.value) == (2, 2, 2, 0, 1.0)
    assert full.failed == {"too long": 2} and summary.missing == 1
    assert "answers missing: 1; the same command asks for them again" in summary.notes
    assert "full: 2 requests failed; 2 of them: too long" in summary.notes


def test_answers_by_another_route_are_noted(compared):
    summary = summarise(*compared(*[("yes", "yes")] * 2, route="full", reason="draft_timeout"), 0)
    assert "spec_pc 512: of 2 answers, other routes gave 2 by full (draft_timeout)" in summary.notes


def test_a_call_that_failed_counts_and_is_missing(compared):
    """Another run asks again, unlike for a request that can never be answered."""
    late, long = Failure("DeadlineExceeded", "too late", again=True), Failure("PromptTooLong", "too long")
    summary = summarise(*compared(("yes", late), ("yes", long), (late, "yes"), ("yes", "yes")), 0)
    full, arm = summary.tables[0].rows
    assert (full.answers, full.failed, arm.failed) == (3, {"too late": 1}, {"too late": 1, "too long": 1})
    assert summary.missing == 2 and "answers missing: 2; the same command asks for them again" in summary.notes
    assert "full: 1 requests failed; 1 of them: too late" in summary.notes
    # Pairs are those of both answers.
    assert (arm.answers, arm.wins, arm.losses, arm.of_full.value) == (2, 0, 0, 1.0)


def test_auto_says_what_it_chose(answer):
    examples, arms = [Example(f"q{number}", {"prompt": f"{number}"}) for number in range(3)], arms_of("auto", "512")
    chosen = [("full", "below_threshold"), ("spec_kv", "cheaper"), ("full", "below_threshold")]
    results = {
        Key(example.digest, arm.name): answer("a") if arm.name == "full" else answer("a", route=route, reason=reason)
        for example, (route, reason) in zip(examples, chosen, strict=True)
        for arm in arms
    }
    summary = summarise(examples, arms, results, 0)
    assert [row.arm for row in summary.tables[0].rows] == ["full", "auto"]
    wanted = "auto: of 3 answers, the router's choice gave 2 by full (below_threshold), 1 by spec_kv (cheaper)"
    assert wanted in summary.notes


def test_the_worst_cases(compared):
    long = "yes, " + "a" * 40
    summary = summarise(*compared(("yes", "yes"), (long, "no"), ("yes", "no"), ("no", "yes"), (long, "yes")), 0)
    assert [case.example.id for case in summary.cases] == ["q1", "q2"]
    assert {case.arm.name for case in summary.cases} == {"spec_pc 512"}


def test_the_worst_cases_where_nothing_is_expected(compared):
    pairs = ("abc", "abc"), ("abc", "abd"), ("abc", "xyz")
    assert [c.example.id for c in summarise(*compared(*pairs, expected=(), scorer=None), 0).cases] == ["q2", "q1"]


@pytest.mark.parametrize(
    ("right", "count", "options", "words"),
    [
        (5, 10, {}, "only 10 scored prompts: up to 5 more losses than wins may be chance, and if none is lost, a route "
                    "may still lose up to 28% of such prompts"),
        (20, 40, {}, ""),
        (4, 40, {}, "full has 10% of the answers right: there is little to lose"),
        (12, 40, {"choices": ("yes", "no", "a", "b"), "scorer": "choice"}, "30% of the answers right (25% by chance)"),
        (20, 40, {"choices": ("yes", "no", "a", "b"), "scorer": "choice"}, ""),
        (38, 40, {}, "full has 95% of the answers right: prompts as easy as these"),
        (40, 40, {"expected": (), "scorer": None}, "nothing is expected of the answers"),
        (9, 9, {"expected": (), "scorer": None}, "only 9 prompts"),
    ],
)  # fmt: skip
def test_a_set_that_cannot_discriminate(compared, right, count, options, words):
    pairs = [("yes", "yes")] * right + [("no", "no")] * (count - right)
    notes = summarise(*compared(*pairs, **options), 0).notes
    assert words in "; ".join(notes) and bool(words) == bool(notes)


def test_every_arm_reads_some_prompts_first():
    arms = arms_of("spec_pc,spec_kv", "10%,512")
    orders = [order(arms, number) for number in range(10)]
    assert all(sorted(each, key=arms.index) == list(arms) for each in orders)
    assert all([each[0] for each in orders].count(arm) == 2 for arm in arms)

    def reads(arm):
        return readers_of(arm.route)

    first = [[arm for i, arm in enumerate(each) if not any(reads(arm) & reads(b) for b in each[:i])] for each in orders]
    assert sum(each.count(arms[0]) for each in first) == 4
