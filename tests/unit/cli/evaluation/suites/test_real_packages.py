"""The suites with their real packages, where `make suites` has installed them. Tokens are counted as four characters
each, so that no model is needed."""

from pathlib import Path

import pytest

from presift.cli.evaluation.scorers import SCORERS
from presift.cli.evaluation.suites import agent_sessions, ruler
from presift.cli.evaluation.suites.foreign_python import ForeignPython

PYTHON = Path(__file__).parents[5] / ".venv-suites" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="the packages are not installed: make suites")
RETRIEVAL = {"niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
             "niah_multikey_3", "niah_multivalue", "niah_multiquery"}  # fmt: skip
TASKS = RETRIEVAL | {"vt", "cwe", "fwe", "qa_1", "qa_2"}


@pytest.fixture
def site():
    """Not the tiny packages."""


@pytest.fixture
def python():
    return ForeignPython(PYTHON)


@pytest.fixture
def counter():
    class Counter:
        async def text(self, text):
            return len(text) // 4

        async def chat(self, messages):
            return sum(len(message["content"]) for message in messages) // 4

    return Counter()


async def test_all_tasks_of_ruler(lines):
    found = await lines(ruler.SUITE, lengths=(4096,), per_task=1)
    assert {line["kind"] for line in found} == TASKS and len(found) == len(TASKS)
    for line in found:
        (message,) = line["messages"]
        text, expected = message["content"], line["expected"]
        # fwe makes prompts of the whole length, as published.
        room = 0 if line["kind"] == "fwe" else line["max_new_tokens"]
        assert 0.4 * 4096 < len(text) // 4 <= 4096 - room, line["kind"]
        assert all(answer in text for answer in expected) or line["kind"] == "qa_2"  # some are yes and no
        assert SCORERS[line["scorer"]](", ".join(expected), expected, ()) == 1
        assert "{" not in text.replace("{\\", "") or line["kind"].startswith("qa")
    many = {line["kind"]: len(line["expected"]) for line in found}
    assert many | {"qa_1": 0, "qa_2": 0} == dict.fromkeys(TASKS, 1) | {
        "niah_multivalue": 4, "niah_multiquery": 4, "vt": 5, "cwe": 10, "fwe": 3, "qa_1": 0, "qa_2": 0,
    }  # fmt: skip


async def test_equal_seeds_give_equal_prompts(lines):
    first, same, other = [await lines(ruler.SUITE, lengths=(4096,), tasks=("niah_multikey_2",), seed=seed, per_task=1)
                          for seed in (0, 0, 1)]  # fmt: skip
    assert first == same != other


async def test_agent_sessions(lines):
    found = await lines(agent_sessions.SUITE, lengths=(8192, 32768), per_task=3)
    assert {line["kind"] for line in found} == {"codex", "claude-code"}
    for line in found:
        length = int(line["id"].rpartition("-")[2])
        assert 0.4 * length < sum(len(each["content"]) for each in line["messages"]) // 4 <= length
        assert len({each["role"] for each in line["messages"]} - {"user", "assistant"}) == 0
