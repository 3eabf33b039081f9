"""Peers beside presift's routes, against a real orchestrator."""

import sys
from pathlib import Path

import pytest

from presift.cli.evaluation.dataset import Example
from presift.cli.evaluation.runner import AnswerSettings
from presift_client import AsyncClient

from ..fakes.house import ALL_ROUTES
from ..fakes.services import model

# The benchmarks are scripts, not a package.
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from peers.compare import arms, compare

FACTS = "".join(f"Number {number} is {number * 7}.\n" for number in range(80))


async def test_one_table_with_all(open_house, tmp_path):
    """A token is a byte. Every text that the target reads has the budget's tokens, or a passage less."""
    house = await open_house(routes=ALL_ROUTES, target=model("target", context_tokens=4000))
    messages = [{"role": "user", "content": FACTS + "What is number 17?"}]
    examples = (Example("q", {"messages": messages}, ("119",), (), "contains"),)
    compared, results = arms("spec_pc", "50%", "truncation,bm25"), tmp_path / "results.jsonl"
    async with AsyncClient(house.address) as client:
        summary = await compare(client, examples, compared, AnswerSettings(8), results)
        rows = {row.arm: row for row in summary.tables[0].rows}
        assert list(rows) == ["full", "spec_pc 50%", "truncation 50%", "bm25 50%"] and summary.missing == 0
        for name in list(rows)[1:]:
            assert 0.45 < rows[name].read_share < 0.501, name
        assert rows["truncation 50%"].first_readings == rows["bm25 50%"].first_readings == 1
        assert len(house.target.calls) == 4
        await compare(client, examples, compared, AnswerSettings(8), results)
        assert len(house.target.calls) == 4


async def test_a_plain_text_is_refused_before_any_request(open_house, tmp_path):
    house = await open_house()
    async with AsyncClient(house.address) as client:
        with pytest.raises(ValueError, match="a plain text has no question of its own"):
            await compare(client, (Example("q", {"prompt": "x"}),), arms("spec_pc", "50%", "bm25"),
                          AnswerSettings(8), tmp_path / "results.jsonl")  # fmt: skip
    assert house.target.calls == []
