"""Which replicas a pool uses: those that are most. Kinds are sets of letters; what lacks one of the reference's
differs."""

import pytest

from presift.rpc.pool.reference import MINORITY_S, Reference
from presift.rpc.pool.service import Service


def differs(used, other):
    missing = set(used) - set(other)
    return f"lacks {''.join(sorted(missing))}" if missing else ""


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def build(clock):
    def build(first=(), *, is_pinned=True, **options):
        service = Service("target", RuntimeError, None, None, differs, is_pinned, **options)
        reference = Reference(service, clock)
        reference.choose(list(first))
        return reference

    return build


@pytest.mark.parametrize(
    ("known", "chosen"),
    [
        ((), None),
        (("a",), "a"),
        (("a", "b", "b"), "b"),  # the canary came first
        (("a", "ab", "ab"), "ab"),  # and one whose self-check failed: it could be replaced by any of the others
        (("b", "a", "a", "b"), "b"),
        (("a", "ba", "ab", "b"), "ba"),
    ],
)
def test_most_replicas_choose(build, known, chosen):
    assert build(known).info == chosen


def test_a_choice_is_made_once(build):
    reference = build(["a"])
    reference.choose(["b", "b"])
    assert reference.info == "a"
    assert build().review(["b"]) == ""


def test_a_minority_is_replaced_after_a_minute(build, clock):
    reference = build(["a"])
    assert reference.review(["a", "b", "b"]) == ""
    clock.now += MINORITY_S - 0.1
    assert reference.review(["a", "b", "b"]) == "" and reference.info == "a"
    clock.now += 0.1
    assert reference.review(["a", "b", "b"]) == "lacks a" and reference.info == "b"
    assert reference.review(["a", "b", "b"]) == ""


def test_the_minute_begins_anew_once_it_is_no_minority(build, clock):
    reference = build(["a"])
    reference.review(["a", "b", "b"])
    clock.now += MINORITY_S
    for known in (["a", "b"], []):
        assert reference.review(known) == ""  # as many, or none known: no minority
    clock.now += MINORITY_S
    assert reference.review(["a", "b", "b"]) == "" and reference.info == "a"


def test_a_pinned_one_stays_for_a_minute_without_replicas(build, clock):
    reference = build(["a"])
    assert reference.review(["b"]) == "" and reference.info == "a"
    clock.now += MINORITY_S
    assert reference.review(["b"]) == "lacks a" and reference.info == "b"


def test_another_is_replaced_at_once_where_no_replica_is_like_it(build):
    reference = build(["a"], is_pinned=False)
    assert reference.review(["a", "b", "b"]) == "" and reference.review([]) == ""
    assert reference.review(["b"]) == "lacks a" and reference.info == "b"


def test_those_that_can_do_more_replace_it(build, clock):
    reference = build(["a"])
    reference.review(["a", "ab", "ab"])
    clock.now += MINORITY_S
    assert reference.review(["a", "ab", "ab"]) == "it can do more" and reference.info == "ab"


def test_only_what_may_replace_it_counts(build, clock):
    reference = build(["a"], can_replace=lambda used, other: other != "b")
    reference.review(["a", "b", "b"])
    clock.now += MINORITY_S
    assert reference.review(["a", "b", "b"]) == "" and reference.info == "a"
