import pytest
from renewal_methods import EVERY, FEW, FULL, Method
from renewal_table import floors, share, table

from presift.core.errors import InvalidRequest


def row(question, method, stated, *, kind="six facts", skipped=0):
    return {
        "question": question,
        "kind": kind,
        "method": method,
        "stated": stated,
        "mean_held": 513,
        "answer": 80,
        "renewals": 5,
        "skipped": skipped,
    }


def rows(method, stated):
    """Ten questions: `full` states four facts of each."""
    return [
        one
        for number in range(10)
        for one in (row(str(number), FULL, [0, 1, 2, 3]), row(str(number), method, stated[number % len(stated)]))
    ]


@pytest.mark.parametrize("name", [*EVERY, *FEW])
def test_every_method_that_is_listed_has_a_plan(name):
    method = Method.of(name)
    plan = method.plan(list(range(64)))
    assert (plan is None) == (name == FULL)
    if plan is not None:
        assert plan.policy.capacity == int(name.split("/")[1])
        assert len(plan.lookahead_token_ids) == {"draft24": 24, "draft64": 64}.get(name.split("/")[0], 0)
        assert plan.policy.renews == name.startswith(("renew", "target"))
        assert plan.policy.renew_every == {"renew12": 12, "renew32": 32}.get(name.split("/")[0], 0)


def test_window_and_first_tokens_are_part_of_the_name():
    policy = Method.of("renew8w64f4/300").policy
    assert (policy.renew_every, policy.renew_window, policy.first_full_tokens, policy.capacity) == (8, 64, 4, 300)


@pytest.mark.parametrize("name", ["renew", "full/512", "draft24", "lookahead/512", "renew12w/512"])
def test_an_unknown_method_is_refused(name):
    with pytest.raises(InvalidRequest, match="method"):
        Method.of(name)


def test_a_share_counts_only_what_full_states():
    full = row("a", FULL, [0, 1, 2])
    assert share([(row("a", "snap/512", [1, 5, 7]), full)]) == pytest.approx(1 / 3)
    assert share([(row("a", "snap/512", [1]), row("a", FULL, []))]) is None


def test_the_table_counts_facts_and_questions_won_and_lost():
    found = [*rows("draft24/512", [[0, 1]]), *rows("renew12/512", [[0, 1, 2, 3], [0, 1, 2, 3, 4], [0]])[1::2]]
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in table(found).splitlines()}
    assert lines["renew12/512"][1:8] == ["78% (10)", "78% (10)", "85%", "10", "+3 -3", "+7 -3", "513"]
    assert lines["draft24/512"][5] == "+0 -10"
    assert lines[FULL][2] == "100% (10)"


def test_a_method_below_its_floor_is_named():
    assert floors(rows("renew12/512", [[0, 1, 2, 3]])) == []
    (missed,) = floors(rows("renew12/512", [[0, 1, 2, 3]] * 4 + [[0, 1]]))
    assert missed == "renew12/512, six facts: 0.900 of full on 10 questions, floor 0.97"


def test_too_few_questions_have_no_floor():
    assert floors(rows("renew12/512", [[0]])[:18]) == []


def test_rows_with_skipped_renewals_are_named():
    (missed,) = floors([row("a", FULL, [0]), row("a", "renew12/512", [0], skipped=2)])
    assert missed == "renewals were skipped: a renew12/512"
