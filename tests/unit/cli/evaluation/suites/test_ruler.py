"""RULER's generators run in another process, by the stack's count of tokens."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from presift.cli.evaluation.suites import foreign_python, ruler

NIAH = ("niah_red", "niah_blue")


async def test_a_prompt_of_each_task_and_length_then_the_next_of_each(lines):
    found = await lines(ruler.SUITE, tasks=NIAH, lengths=(40, 80))
    assert [line["id"] for line in found] == [
        f"{task}-{length}-{number}" for number in (0, 1) for length in (40, 80) for task in NIAH
    ]
    first = found[0]
    assert first | {"messages": 0, "expected": 0, "id": 0} == {
        "id": 0, "kind": "niah_red", "messages": 0, "expected": 0, "scorer": "contains_share", "max_new_tokens": 8,
    }  # fmt: skip
    (message,) = first["messages"]
    assert message["role"] == "user" and message["content"].endswith("é What is red? It is")
    assert first["expected"] == ["w42-0-24"] and "w42-0-24\n" in message["content"]


async def test_prompts_have_their_length_in_the_tokens_of_the_stack(lines, counter):
    for line in await lines(ruler.SUITE, tasks=NIAH, lengths=(40, 80)):
        length = int(line["id"].split("-")[1])
        assert await counter.text(line["messages"][0]["content"]) + line["max_new_tokens"] == length


async def test_seeds_give_other_prompts_and_equal_seeds_the_same(lines):
    first, same, other = [await lines(ruler.SUITE, tasks=NIAH, seed=seed) for seed in (0, 0, 1)]
    assert first == same
    assert not {line["expected"][0] for line in first} & {line["expected"][0] for line in other}


async def test_an_unknown_task_is_named(lines):
    with pytest.raises(ValueError, match="tasks has 'niah_green'; each must be one of niah_red, niah_blue, qa_1"):
        await lines(ruler.SUITE, tasks=("niah_green",))


async def test_a_generator_that_never_ends_is_ended(lines):
    with pytest.raises(ValueError, match=r"qa\.py finds no prompts of this length \(tried 620 texts\)"):
        await lines(ruler.SUITE, tasks=("qa_1",), lengths=(2000,))


async def test_a_generator_that_fails_is_reported(site, lines):
    (site / "long_context_eval/data/synthetic/niah.py").write_text("raise ValueError('no such haystack')")
    with pytest.raises(ValueError, match=r"failed in .* \(1\): ValueError: no such haystack"):
        await lines(ruler.SUITE, tasks=("niah_red",))


async def test_a_generator_that_repeats_an_error_is_ended(site, lines, monkeypatch):
    """Some catch every exception and try again, without a text to count."""
    monkeypatch.setattr(foreign_python, "_SILENT_S", 0.5)
    (site / "long_context_eval/data/synthetic/niah.py").write_text("import time\nwhile True: time.sleep(0.01)")
    with pytest.raises(ValueError, match=r"niah\.py has made no text for 0 s"):
        await lines(ruler.SUITE, tasks=("niah_red",))


async def test_generators_see_no_secrets(site, lines, monkeypatch):
    for name in ("PRESIFT_API_KEY", "HF_TOKEN", "ORDINARY"):
        monkeypatch.setenv(name, "x")
    shown = "[name for name in os.environ if name in ('PRESIFT_API_KEY', 'HF_TOKEN', 'ORDINARY')]"
    script = f"import os\nraise ValueError({shown})"
    (site / "long_context_eval/data/synthetic/niah.py").write_text(script)
    with pytest.raises(ValueError, match=r"ValueError: \['ORDINARY'\]"):
        await lines(ruler.SUITE, tasks=("niah_red",))


async def test_another_layout_of_the_package_is_reported(site, lines):
    (site / "long_context_eval/data/synthetic/constants.py").write_text("KINDS = {}")
    with pytest.raises(ValueError, match=r"constants\.py has no TASKS: this version of nvidia-long-context-eval"):
        await lines(ruler.SUITE)


async def test_nothing_runs_on_after_an_interruption(site, lines, counter):
    """The generators catch every exception, so that only the end of the process ends them."""
    started = asyncio.Event()

    async def count(text):
        started.set()
        return await asyncio.sleep(60, 1)

    counter.text = count
    others = children()  # of other tests
    running = asyncio.create_task(lines(ruler.SUITE, tasks=("qa_1",)))
    await started.wait()
    before = children() - others
    running.cancel()
    await asyncio.wait([running], timeout=20)
    left = children() & before
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert before and not left


def children():
    """The processes that this one has started."""
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(word) for word in task.read_text().split()}


async def test_a_generator_ends_with_its_parent(site, python):
    """A parent that is killed kills nobody: the generator ends because nobody answers."""
    child = Path(ruler.__file__).with_name("child.py")
    script = site / "long_context_eval/data/synthetic/qa.py"
    process = await asyncio.create_subprocess_exec(
        python._path, child, "run", script, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert await process.stdout.readline() == b"8\n"
    process.stdin.close()
    try:
        assert await asyncio.wait_for(process.wait(), 20) == 1
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
