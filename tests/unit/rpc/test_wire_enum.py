"""Enums and their protobuf enums."""

from enum import Enum

import pytest

from presift.core.errors import InvalidRequest
from presift.core.policies import Heads
from presift.rpc.wire_enum import WireEnum
from presift.v1 import plan_pb2

HEADS = WireEnum(Heads, plan_pb2.ScoredHeads)


@pytest.mark.parametrize("heads", Heads)
def test_each_member_survives_the_way_there_and_back(heads):
    number = HEADS.to_wire(heads)
    assert plan_pb2.ScoredHeads.Name(number) == f"SCORED_HEADS_{heads.name}"
    assert HEADS.from_wire(number, "policy.heads") is HEADS.known(number) is heads


def test_unspecified_is_no_member():
    assert HEADS.from_wire(plan_pb2.SCORED_HEADS_UNSPECIFIED, "policy.heads") is None


def test_an_unknown_number_is_refused_with_the_names_of_the_known_ones():
    assert HEADS.known(7) is None
    with pytest.raises(InvalidRequest) as refused:
        HEADS.from_wire(7, "policy.heads")
    assert (refused.value.field, refused.value.value) == ("policy.heads", 7)
    assert refused.value.limit == "one of SCORED_HEADS_ALL, SCORED_HEADS_CALIBRATED"


def test_a_member_that_the_protobuf_enum_lacks_is_noticed_at_once():
    with pytest.raises(ValueError, match="SCORED_HEADS_SOME"):
        WireEnum(Enum("Heads", ["ALL", "SOME"]), plan_pb2.ScoredHeads)
