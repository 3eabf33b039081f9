"""The suites with their real packages, where `make suites` has installed them. Tokens are counted as four characters
each, so that no model is needed."""

from pathlib import Path

import pytest

from presift.cli.evaluation.scorers import SCORERS
from presift.cli.evaluation.suites import agent_sessions, ruler
from presift.cli.evaluation.suites.foreign_python import ForeignPython

PYTHON = Path(__file__).parents[5] / ".venv-suites" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="the packages are not installed: make suites")
# One of each generator, and of niah, which takes twenty seconds and 0.8 GB each time, the one that needs NLTK's data.
TASKS = ("niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2")
ALL = {"niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
       "niah_multivalue", *TASKS}  # fmt: skip


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


async def test_the_generators_of_ruler(lines):
    found = await lines(ruler.SUITE, lengths=(4096,), tasks=TASKS, per_task=1)
    assert sorted(line["kind"] for line in found) == sorted(TASKS)
    for line in found:
        (message,) = line["messages"]
        text, expected = message["content"], line["expected"]
        # fwe makes prompts of the whole length, as published.
        room = 0 if line["kind"] == "fwe" else line["max_new_tokens"]
        assert 0.4 * 4096 < len(text) // 4 <= 4096 - room, line["kind"]
        assert all(answer in text for answer in expected) or line["kind"] == "qa_2"  # some are yes and no
        assert SCORERS[line["scorer"]](", ".join(expected), expected, ()) == 1
    many = {line["kind"]: len(line["expected"]) for line in found}
    assert many | {"qa_1": 0, "qa_2": 0} == {
        "niah_multiquery": 4, "vt": 5, "cwe": 10, "fwe": 3, "qa_1": 0, "qa_2": 0
    }  # fmt: skip


async def test_the_tasks_of_ruler(python):
    suite = ruler.SUITE
    packages = await python.packages("ruler", suite.distributions, (), needs_sentences=True)
    assert {task.name for task in ruler._tasks(packages["nvidia-long-context-eval"].folder)} == ALL


async def test_equal_seeds_give_equal_prompts(lines):
    first, same, other = [await lines(ruler.SUITE, lengths=(4096,), tasks=("vt",), seed=seed, per_task=1)
                          for seed in (0, 0, 1)]  # fmt: skip
    assert first == same != other


async def test_agent_sessions(lines):
    found = await lines(agent_sessions.SUITE, lengths=(8192, 32768), per_task=3)
    assert {line["kind"] for line in found} == {"codex", "claude-code"}
    for line in found:
        length = int(line["id"].rpartition("-")[2])
        assert 0.4 * length < sum(len(each["content"]) for each in line["messages"]) // 4 <= length
        assert len({each["role"] for each in line["messages"]} - {"user", "assistant"}) == 0
