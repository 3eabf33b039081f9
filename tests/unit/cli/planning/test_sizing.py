"""Sizing: cases calculated by hand, the limit that decides, and monotonicity."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.cli.planning.sizing import Limits, drafts, load_per_target, orchestrators, sizes, targets
from presift.cli.planning.workload import Length, LengthWork, Workload, mix_of
from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.orchestrator.routing.cost_model import CostCurve, StageCosts

# An answer token takes 0.1 ms whatever is held, plus a step of 20 ms.
SPEEDS = StageCosts(target=CostCurve(0, 0.1, 0), decoding=CostCurve(20, 0, 0))
FULL = LengthWork(1000, 1.0, Route.FULL, 0.0, 0.1, 1000, 1000, 1000, 0.1)
COMPRESSED = LengthWork(10_000, 1.0, Route.SPEC_PC, 0.5, 0.05, 512, 512, 512, 0.55)
LIMITS = Limits(kv_pool_tokens=100_000, max_running=1000)


def load(rate=2.0, answer_tokens=100, **options):
    return Workload(rate, (Length(1000, 1.0),), answer_tokens, **options)


def test_a_target_by_hand():
    """2 requests/s: 0.2 of the time reads, 0.02 is work per token. 2 x 100 x 20 ms / 0.78 = 5.13 decode at once."""
    one = load_per_target(1, load(), [FULL], SPEEDS)
    assert one.size.utilisation == pytest.approx(2 * (0.1 + 100 * 0.0001))
    assert one.decoding == pytest.approx(4 / 0.78)
    assert one.token_s == pytest.approx((0.020 + one.decoding * 0.0001) / 0.8)
    # Little's law.
    assert one.decoding == pytest.approx(2 * 100 * one.token_s)
    assert one.kv_tokens == pytest.approx(one.decoding * 1050 + 2 * 0.1 * 1000)
    assert one.size.wait_s == pytest.approx(0.2 / (2 * 0.8) * 0.1)


def test_drafts_by_hand():
    """3 prompts/s of 0.5 s each: 1.5 drafts of work, so three drafts at 70 %."""
    found = drafts(load(3.0), [COMPRESSED], LIMITS)
    assert (found.replicas, found.utilisation) == (3, 0.5)
    # C(3, 1.5) = 0.2368; half of it for constant times.
    assert found.wait_s == pytest.approx(0.23684 * 0.5 / 1.5 / 2, rel=1e-4)
    assert drafts(load(3.0, cache_hits=0.5), [COMPRESSED], LIMITS).replicas == 2
    assert drafts(load(3.0, cache_hits=1.0), [COMPRESSED], LIMITS).replicas == 0
    assert drafts(load(3.0), [FULL], LIMITS).replicas == 0


def test_half_of_the_prompts_need_half_of_the_drafts():
    mixed = [replace(COMPRESSED, share=0.5), replace(FULL, share=0.5)]
    assert drafts(load(6.0), mixed, LIMITS).utilisation == drafts(load(3.0), [COMPRESSED], LIMITS).utilisation


def test_orchestrators_by_hand():
    """3.4 + 1,000 x 0.0012 + 100 x 0.17 = 21.6 ms: 32 per second at 70 %."""
    assert orchestrators(load(32.0), [FULL], LIMITS).replicas == 1
    assert orchestrators(load(33.0), [FULL], LIMITS).replicas == 2
    assert orchestrators(load(100.0), [FULL], LIMITS).utilisation == pytest.approx(2.16 / 4)


@pytest.mark.parametrize(
    ("limits", "replicas", "decides"),
    [
        (LIMITS, 4, "time"),  # 20 x 0.11 / 0.7 = 3.1
        (replace(LIMITS, max_running=8), 8, "concurrent requests"),  # 40 / (n - 2.2) <= 8 from n = 7.2
        (replace(LIMITS, kv_pool_tokens=8_000), 10, "KV memory"),
    ],
)
def test_the_limit_that_decides_on_targets(limits, replicas, decides):
    found = targets(load(20.0), [FULL], SPEEDS, limits)
    assert (found.size.replicas, found.size.bound_by) == (replicas, decides)
    assert found.size.utilisation <= limits.utilisation and found.decoding <= limits.max_running
    assert found.kv_tokens <= limits.kv_pool_tokens * limits.utilisation
    fewer = load_per_target(replicas - 1, load(20.0), [FULL], SPEEDS)
    assert (
        fewer.size.utilisation > limits.utilisation
        or fewer.decoding > limits.max_running
        or fewer.kv_tokens > limits.kv_pool_tokens * limits.utilisation
    )


RATES = st.floats(0.01, 500)
WORK = st.builds(
    LengthWork,
    tokens=st.integers(1, 100_000),
    share=st.just(1.0),
    route=st.just(Route.SPEC_PC),
    draft_s=st.floats(0, 5),
    target_s=st.floats(0.001, 5),
    read_tokens=st.integers(1, 50_000),
    peak_tokens=st.integers(1, 50_000),
    held_tokens=st.integers(1, 50_000),
    ttft_s=st.just(1.0),
)


def replicas(found):
    return found.drafts.replicas, found.targets.size.replicas, found.orchestrators.replicas


@given(RATES, st.floats(1, 10), WORK)
def test_more_requests_never_need_fewer_replicas(rate, times, asked):
    few, many = (replicas(sizes(load(each), [asked], SPEEDS, LIMITS)) for each in (rate, rate * times))
    assert all(a <= b for a, b in zip(few, many, strict=True))


@given(RATES, WORK, st.floats(1, 5))
def test_longer_work_never_needs_fewer_replicas(rate, asked, times):
    longer = replace(asked, draft_s=asked.draft_s * times, target_s=asked.target_s * times)
    few, many = (replicas(sizes(load(rate), [each], SPEEDS, LIMITS)) for each in (asked, longer))
    assert all(a <= b for a, b in zip(few, many, strict=True))


@given(RATES, WORK, st.floats(0.2, 0.5), st.floats(0.5, 0.95))
def test_a_looser_limit_never_needs_more_replicas(rate, asked, tight, loose):
    few, many = (
        replicas(sizes(load(rate), [asked], SPEEDS, replace(LIMITS, utilisation=each))) for each in (loose, tight)
    )
    assert all(a <= b for a, b in zip(few, many, strict=True))


@given(RATES, WORK)
def test_all_limits_are_kept(rate, asked):
    found = sizes(load(rate), [asked], SPEEDS, LIMITS)
    assert found.drafts.utilisation <= 0.7 + 1e-6 and found.orchestrators.utilisation <= 0.7 + 1e-6
    assert found.targets.size.utilisation <= 0.7 and found.targets.kv_tokens <= 70_000


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"answer_tokens": 0}, "answer_tokens"),
        ({"cache_hits": 1.5}, "cache_hits"),
        ({"mix": ()}, "mix"),
        ({"mix": (Length(100, 0.5),)}, "mix"),
        ({"mix": (Length(0, 1.0),)}, "mix"),
        ({"mix": (Length(10, -1.0), Length(10, 2.0))}, "mix"),
    ],
)
def test_an_impossible_load_is_refused(change, field):
    with pytest.raises(InvalidRequest) as refused:
        replace(load(), **change)
    assert refused.value.field == field and str(refused.value.value) in str(refused.value)


@pytest.mark.parametrize("text", ["", "a:1", "100:b", "100:0.5,", "1.5:1"])
def test_a_mix_that_cannot_be_read_is_refused(text):
    with pytest.raises(InvalidRequest, match=r"mix is .*TOKENS:SHARE"):
        mix_of(text)


def test_a_mix():
    assert mix_of("2000:0.5, 16000:0.5") == (Length(2000, 0.5), Length(16_000, 0.5))
    assert mix_of("4000") == (Length(4000, 1.0),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("utilisation", 0.0),
        ("utilisation", 1.0),
        ("utilisation", float("nan")),
        ("max_running", 0),
        ("kv_pool_tokens", 0),
    ],
)
def test_impossible_limits_are_refused(field, value):
    with pytest.raises(InvalidRequest, match=field):
        replace(LIMITS, **{field: value})


def test_a_request_that_fits_no_target_is_refused():
    with pytest.raises(InvalidRequest, match="kv_pool_tokens is 1050; it must be at least 1100"):
        targets(load(), [FULL], SPEEDS, replace(LIMITS, kv_pool_tokens=1050))


def test_an_excessive_rate_is_refused():
    with pytest.raises(InvalidRequest, match="rate"):
        targets(load(1e6), [FULL], SPEEDS, LIMITS)
