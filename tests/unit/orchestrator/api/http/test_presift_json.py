"""Decisions as JSON."""

import json
import tracemalloc

import pytest

from presift.core.answer import TokenLogprob
from presift.core.plan import ModelInfo, Route
from presift.orchestrator.api.http.presift_json import decision_header, presift_of_answers
from presift.orchestrator.routing.choice import Reason
from presift.orchestrator.routing.decision import Decision

from .....contract.fakes.scripted_pipeline import report


@pytest.mark.parametrize(("characters", "sent"), [(511, 511), (512, 512), (513, 512), (100_000, 512)])
def test_the_detail_in_the_header_is_cut(characters, sent):
    target = ModelInfo("target", "r1", "f1", 400, 4, 2, 1000)
    header = decision_header(Decision(Route.FULL, Reason.REQUESTED, "x" * characters, 10, 10, 10, 0, target, 0.0))
    assert json.loads(header)["detail"] == "x" * sent


def test_the_prompts_log_probabilities_are_not_rendered_in_the_usage():
    """Before, they became a message and JSON, 10 KiB a token, and were then dropped."""
    tokens = tuple(TokenLogprob(each, -1.0, tuple((other, -1.0) for other in range(20))) for each in range(1000))
    answer = report(prompt_logprobs=tokens)
    presift_of_answers([report()], ())
    tracemalloc.start()
    usage = presift_of_answers([answer], ())["usage"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000 and "prompt_logprobs" not in usage and usage["completion_tokens"] == 2
