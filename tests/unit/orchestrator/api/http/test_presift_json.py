"""Decisions as JSON."""

import json

import pytest

from presift.core.plan import ModelInfo, Route
from presift.orchestrator.api.http.presift_json import decision_header
from presift.orchestrator.routing.choice import Reason
from presift.orchestrator.routing.decision import Decision


@pytest.mark.parametrize(("characters", "sent"), [(511, 511), (512, 512), (513, 512), (100_000, 512)])
def test_the_detail_in_the_header_is_cut(characters, sent):
    target = ModelInfo("target", "r1", "f1", 400, 4, 2, 1000)
    header = decision_header(Decision(Route.FULL, Reason.REQUESTED, "x" * characters, 10, 10, 10, 0, target, 0.0))
    assert json.loads(header)["detail"] == "x" * sent
