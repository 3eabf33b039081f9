"""Peers beside presift's routes, against a real orchestrator."""

import sys
from pathlib import Path

import pytest

from presift.cli.evaluation.dataset import Example
from presift.cli.evaluation.runner import AnswerSettings
from presift_client import AsyncClient

from ...fake_sglang import FakeSglang
from ..fakes.services import model
from ..fakes.stack import ALL_ROUTES

# The benchmarks are scripts, not a package.
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from peers.compare import arms, compare
from peers.registry import Places

FACTS = "".join(f"Number {number} is {number * 7}.\n" for number in range(80))


async def test_one_table_with_all(open_stack, tmp_path):
    """A token is a byte. Every text that the target reads has the budget's tokens, or a passage less."""
    stack = await open_stack(routes=ALL_ROUTES, target=model("target", context_tokens=4000))
    messages = [{"role": "user", "content": FACTS + "What is number 17?"}]
    examples = (Example("q", {"messages": messages}, ("119",), (), "contains"),)
    compared, results = arms("spec_pc", "50%", "truncation,bm25,sglang"), tmp_path / "results.jsonl"
    sglang = FakeSglang()
    with sglang.serving() as url:
        places = Places(tmp_path, url)
        async with AsyncClient(stack.address) as client:
            found = await compare(client, examples, compared, AnswerSettings(8), results, places=places)
            rows = {row.arm: row for row in found.summary.tables[0].rows}
            assert list(rows) == ["full", "spec_pc 50%", "truncation 50%", "bm25 50%", "sglang"]
            for name in ("spec_pc 50%", "truncation 50%", "bm25 50%"):
                assert 0.45 < rows[name].read_share < 0.501, name
            for name in ("truncation 50%", "bm25 50%", "sglang"):
                assert rows[name].first_readings == 1, name
            assert rows["sglang"].right.value == 1 and rows["sglang"].kv_tokens == 40
            assert rows["sglang"].read_share == 40 / rows["full"].read_tokens
            assert (found.summary.missing, found.peak_mib, len(stack.target.calls)) == (0, {}, 4)
            # The first of the two is not measured. A second run asks nobody.
            assert len(sglang.bodies) == 2 and sglang.bodies[1]["messages"] == messages
            await compare(client, examples, compared, AnswerSettings(8), results, places=places)
            assert (len(stack.target.calls), len(sglang.bodies)) == (4, 2)


MESSAGES = {"messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("prompt", "limit", "words"),
    [({"prompt": "x"}, 8, "a plain text has no question of its own"), (MESSAGES, None, "max-new-tokens is not set")],
)
async def test_what_cannot_be_compared_is_refused_before_any_request(open_stack, tmp_path, prompt, limit, words):
    stack = await open_stack()
    compared, places = arms("spec_pc", "50%", "bm25,sglang"), Places(tmp_path)
    async with AsyncClient(stack.address) as client:
        with pytest.raises(ValueError, match=words):
            await compare(
                client, (Example("q", prompt),), compared, AnswerSettings(limit), tmp_path / "r", places=places
            )
    assert stack.target.calls == []
