"""The JSON of a KV plan: what goes in comes out; what anybody may send is a plan or is refused by name."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from presift.core.errors import InvalidRequest
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.policies import KvSelection, Pool, Reduction, SpecKv
from presift.core.spans import Span
from presift.target.sglang_plugin.custom_params import from_text, mask_from_values, mask_to_values, to_text

MASK = KvMask(np.arange(2 * 3 * 11).reshape(2, 3, 11) % 3 == 0)
MASKED = {"capacity": 40, "selection": "draft_mask", "kv_mask": mask_to_values(MASK)}


@st.composite
def plans(draw: Any) -> KvPlan:
    window, selection = draw(st.integers(1, 2**31)), draw(st.sampled_from(KvSelection))
    masked = selection is KvSelection.DRAFT_MASK
    ids = draw(st.lists(st.integers(0, 2**32 - 1), max_size=8))
    policy = SpecKv(
        capacity=window + draw(st.integers(1, 2**31)),
        window=window,
        pool=draw(st.sampled_from(Pool)),
        kernel=2 * draw(st.integers(0, 512)) + 1,
        reduction=draw(st.sampled_from(Reduction)),
        lookahead_tokens=len(ids) + draw(st.integers(0, 2**31)),
        selection=selection,
    )
    shape = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20))
    starts = draw(st.lists(st.integers(0, 2**31), max_size=3))
    return KvPlan(
        policy,
        protected=tuple(Span(start, start + draw(st.integers(1, 2**31))) for start in starts),
        lookahead_token_ids=() if masked else tuple(ids),
        kv_mask=KvMask(draw(st_numpy.arrays(np.bool_, shape))) if masked else None,
        keep_full_prefix=draw(st.booleans()),
        prompt_tokens=draw(st.integers(0, 2**32 - 1)),
        report_kept=draw(st.booleans()),
    )


def refusal_of(text: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refusal:
        from_text(text)
    return refusal.value


@given(plan=plans())
def test_what_goes_in_comes_out(plan: KvPlan) -> None:
    assert from_text(to_text(plan)) == plan


def test_what_is_left_out_takes_the_defaults() -> None:
    assert from_text('{"capacity": 256}') == KvPlan(SpecKv(256, lookahead_tokens=0))
    expected = KvPlan(SpecKv(256, lookahead_tokens=2), lookahead_token_ids=(785, 4226))
    assert from_text('{"capacity": 256, "lookahead": [785, 4226]}') == expected


def test_a_mask_is_a_shape_and_a_bitset_in_base64() -> None:
    values = mask_to_values(MASK)
    assert values["shape"] == [2, 3, 11]
    assert base64.b64decode(values["kept"]) == MASK.to_bits()
    assert mask_from_values(json.loads(json.dumps(values))) == MASK
    assert from_text(json.dumps(MASKED)).kv_mask == MASK


@pytest.mark.parametrize("text", [None, 5, {"capacity": 9}, "", "{", "capacity=9", b"\xff", '{"capacity": 1e}'])
def test_what_is_not_json(text: Any) -> None:
    assert (refusal_of(text).field, refusal_of(text).value) == ("presift", "not JSON")


@pytest.mark.parametrize(("text", "kind"), [("[]", "list"), ("null", "NoneType"), ('"x"', "str"), ("7", "int")])
def test_json_that_is_no_object(text: str, kind: str) -> None:
    assert (refusal_of(text).field, refusal_of(text).value) == ("presift", kind)


@pytest.mark.parametrize("name", ["budget", "mask", "lookahead_token_ids", ""])
def test_an_unknown_name(name: str) -> None:
    refusal = refusal_of(json.dumps({"capacity": 40, name: 1}))
    assert (refusal.field, refusal.value) == (f"presift.{name}", "unknown")
    assert "kv_mask" in str(refusal.limit) and "capacity" in str(refusal.limit)


def test_no_capacity() -> None:
    assert (refusal_of("{}").field, refusal_of("{}").value) == ("presift.capacity", "unset")


WRONG_NUMBERS = [True, False, -1, 1.0, "40", None, [40], {}, float("nan"), -(10**30)]


@pytest.mark.parametrize("value", WRONG_NUMBERS, ids=str)
@pytest.mark.parametrize("name", ["capacity", "window", "kernel", "lookahead_tokens", "prompt_tokens"])
def test_what_is_no_count(name: str, value: Any) -> None:
    assert refusal_of(json.dumps({"capacity": 40, name: value})).field == f"presift.{name}"


@pytest.mark.parametrize(
    "value", [*WRONG_NUMBERS[:-1], "x", [1, True], [1, -2], [1, 2.0], [None], [[1]], "12"], ids=str
)
def test_what_is_no_list_of_token_ids(value: Any) -> None:
    if value != [40]:
        assert refusal_of(json.dumps({"capacity": 40, "lookahead": value})).field == "presift.lookahead"


@pytest.mark.parametrize(
    "value", [5, "x", {"0": 1}, [5], [[1]], [[1, 2, 3]], [[1, -2]], [[True, 2]], ["ab"], [None]], ids=str
)
def test_what_are_no_spans(value: Any) -> None:
    assert refusal_of(json.dumps({"capacity": 40, "protected": value})).field == "presift.protected"


@pytest.mark.parametrize("value", [0, 1, "true", None, []], ids=str)
@pytest.mark.parametrize("name", ["keep_full_prefix", "report_kept"])
def test_what_is_no_flag(name: str, value: Any) -> None:
    assert refusal_of(json.dumps({"capacity": 40, name: value})).field == f"presift.{name}"


@pytest.mark.parametrize("value", ["median", "", 0, None, True, ["max"], {}], ids=str)
@pytest.mark.parametrize("name", ["pool", "reduction", "selection"])
def test_what_is_no_kind(name: str, value: Any) -> None:
    refusal = refusal_of(json.dumps({"capacity": 40, name: value}))
    assert refusal.field == f"presift.{name}"
    assert str(refusal.limit).startswith("one of ")


def test_a_long_value_is_not_repeated() -> None:
    assert len(str(refusal_of(json.dumps({"capacity": 40, "pool": "x" * 10_000})))) < 200


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"capacity": 32}, "spec_kv.capacity"),
        ({"capacity": 0}, "spec_kv.capacity"),
        ({"capacity": 40, "window": 0}, "spec_kv.window"),
        ({"capacity": 40, "kernel": 4}, "spec_kv.kernel"),
        ({"capacity": 40, "kernel": 10**30 + 1}, "spec_kv.kernel"),
        ({"capacity": 40, "lookahead": [1, 2], "lookahead_tokens": 1}, "kv_plan.lookahead_token_ids"),
        ({"capacity": 40, "protected": [[4, 4]]}, "protected_spans"),
        ({"capacity": 40, "selection": "draft_mask"}, "kv_plan.kv_mask"),
        ({"capacity": 40, "kv_mask": MASKED["kv_mask"]}, "kv_plan.kv_mask"),
        ({**MASKED, "lookahead": [1]}, "kv_plan.lookahead_token_ids"),
    ],
    ids=str,
)
def test_what_cannot_hold_is_refused_as_anywhere(values: dict[str, Any], field: str) -> None:
    assert refusal_of(json.dumps(values)).field == field


MASK_ERRORS: dict[str, Any] = {
    "nothing": None,
    "a text": "AAAA",
    "a list": [],
    "no shape": {"kept": "AAAA"},
    "no bits": {"shape": [1, 1, 8]},
    "two axes": {"shape": [1, 8], "kept": "AA=="},
    "negative": {"shape": [1, -1, 8], "kept": "AA=="},
    "no number": {"shape": [1, True, 8], "kept": "AA=="},
    "no base64": {"shape": [1, 1, 8], "kept": "?!"},
    "base64 with more in it": {"shape": [1, 1, 8], "kept": "A?A=="},
    "cut base64": {"shape": [1, 1, 8], "kept": "AA="},
    "bits that are a number": {"shape": [1, 1, 8], "kept": 5},
    "not ASCII": {"shape": [1, 1, 8], "kept": "é"},
    "too few bits": {"shape": [1, 1, 9], "kept": "AA=="},
    "too many bits": {"shape": [1, 1, 8], "kept": "AAAA"},
    "padding that is set": {"shape": [1, 1, 3], "kept": "/w=="},
    "empty": {"shape": [0, 1, 8], "kept": ""},
    "no tokens": {"shape": [1, 1, 0], "kept": ""},
    "huge": {"shape": [2**20, 2**20, 2**20], "kept": "AA=="},
    "over 64 bits": {"shape": [1, 1, 2**70], "kept": "AA=="},
    "a product that wraps to nothing": {"shape": [2**40, 2**40, 8], "kept": ""},
    "nothing of too much": {"shape": [0, 2**70, 8], "kept": ""},
    "nothing of too many tokens": {"shape": [0, 1, 2**70], "kept": ""},
    "over 64 bits by itself": {"shape": [2**70, 1, 8], "kept": ""},
}


@pytest.mark.parametrize("mask", MASK_ERRORS.values(), ids=MASK_ERRORS)
def test_what_is_no_mask(mask: Any) -> None:
    refusal = refusal_of(json.dumps({**MASKED, "kv_mask": mask}))
    assert refusal.field in ("presift.kv_mask", "presift.kv_mask.shape", "kv_mask", "kv_mask.kept")


def test_json_that_is_too_deep() -> None:
    assert refusal_of('{"capacity": ' + "[" * 100_000).field == "presift"


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
ANYTHING = st.recursive(SCALARS, lambda of: st.lists(of, max_size=4) | st.dictionaries(st.text(max_size=5), of))
NAMES = st.sampled_from([*json.loads(to_text(from_text('{"capacity": 40}'))), "kv_mask", "mask", "x"])


@given(values=st.dictionaries(NAMES, ANYTHING), capacity=st.just(40) | ANYTHING)
def test_whatever_is_sent_is_a_plan_or_is_refused(values: dict[str, Any], capacity: Any) -> None:
    try:
        plan = from_text(json.dumps({**values, "capacity": capacity}))
    except InvalidRequest as refusal:
        assert refusal.field and refusal.limit
        return
    assert from_text(to_text(plan)) == plan
