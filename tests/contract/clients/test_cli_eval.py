"""`presift eval` against a real orchestrator."""

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import presift
import presift_client
from presift.cli.app import app
from presift.core.errors import DeadlineExceeded, Overloaded
from presift.orchestrator.api.auth.interceptor import AuthInterceptor

from ..fakes.api_keys import key_authenticator
from ..fakes.services import model, raises
from ..fakes.stack import ALL_ROUTES

PLACES = os.pathsep.join(str(Path(package.__file__).parents[1]) for package in (presift, presift_client))
FLAGS = ("--routes", "spec_pc,spec_kv", "--budgets", "25%,60", "--max-new-tokens", "8")
ARMS = ("full", "spec_pc 25%", "spec_pc 60", "spec_kv 25%", "spec_kv 60")
ALL = {(f"q{number}", arm) for number in range(3) for arm in ARMS}


@pytest.fixture
async def stack(open_stack):
    return await open_stack(routes=ALL_ROUTES, target=model("target", context_tokens=4000))


def write(path, *lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """Three prompts of 200 to 600 tokens. The fake answers with the prompt as the target read it, reversed."""
    lines = [{"id": f"q{number}", "prompt": "d" * (200 + 200 * number) + "<b>why?"} for number in range(3)]
    write(tmp_path / "prompts.jsonl", *(line | {"expected": "?yhw"} for line in lines))
    return tmp_path


@pytest.fixture
def words(stack, folder):
    """Arguments -> the words of the command."""
    return lambda *arguments: [
        str(word) for word in ("eval", folder / "prompts.jsonl", "--address", stack.address, *FLAGS, *arguments)
    ]


@pytest.fixture
def run(words):
    """Arguments -> the result of the command, run in this process."""
    return lambda *arguments: asyncio.to_thread(CliRunner().invoke, app, words(*arguments))


def kept(folder):
    """The results, by id and arm; each is there once."""
    lines = [json.loads(line) for line in (folder / "prompts.results.jsonl").read_text().splitlines()]
    found = {(line["id"], line["arm"]): line for line in lines}
    assert len(found) == len(lines)
    return found


async def test_three_prompts(stack, folder, run):
    result = await run("--json", folder / "out.json")
    assert result.exit_code == 0, result.output
    assert set(kept(folder)) == ALL and "<b>why" not in (folder / "prompts.results.jsonl").read_text()
    assert len(stack.target.calls) == 15
    assert {(call.sampling.max_new_tokens, call.sampling.temperature) for call in stack.target.calls} == {(8, 0.0)}
    found = json.loads((folder / "out.json").read_text())
    everything, *by_length = found["tables"]
    rows = {row["arm"]: row for row in everything["rows"]}
    assert tuple(rows) == ARMS and [table["lengths"] for table in by_length] == ["128-255", "256-511", "512-1023"]
    assert rows["full"]["right"]["value"] == rows["spec_pc 60"]["of_full"]["value"] == 1.0
    assert rows["spec_pc 60"]["read_tokens"] == 60 and rows["spec_kv 60"]["kv_tokens"] == 60
    assert rows["spec_pc 25%"]["read_share"] == pytest.approx(0.25, abs=0.01)
    assert rows["spec_kv 25%"]["read_share"] == 1 and rows["spec_kv 25%"]["agreement"]["value"] == 1
    assert len(found["answers"]) == 15 and found["header"]["target"] == "target (r1)"
    assert all(name in result.stdout for name in ("all prompts: 3", "of full (95%)", *ARMS, "only 3 scored prompts"))


async def test_short_prompts_are_compressed_too(stack, folder, run):
    """The stack compresses prompts above 32 tokens."""
    write(folder / "prompts.jsonl", {"prompt": "d" * 28})
    result = await run("--budgets", "16")
    assert result.exit_code == 0 and "other routes" not in result.stdout, result.output
    assert kept(folder)["1", "spec_pc 16"]["answer"]["read_tokens"] == 16
    result = await run("--budgets", "16", "--compress-above", 28, "--results", folder / "other.jsonl")
    assert "note: spec_pc 16: of 1 answers, other routes gave 1 by full (below_threshold)" in result.stdout


async def test_auto_is_asked_without_a_budget(stack, folder, run):
    """And without a threshold: the stack compresses prompts above 32 tokens."""
    write(folder / "prompts.jsonl", {"prompt": "d" * 28}, {"prompt": "d" * 300 + "why?"})
    result = await run("--routes", "auto,spec_pc", "--budgets", "16")
    assert result.exit_code == 0, result.output
    found = {key: line["answer"] for key, line in kept(folder).items()}
    assert {arm for _, arm in found} == {"full", "auto", "spec_pc 16"}
    assert (found["1", "auto"]["route"], found["1", "auto"]["reason"]) == ("full", "below_threshold")
    assert found["1", "spec_pc 16"]["read_tokens"] == 16
    # As auto did, not as it might have done: the draft had not read this prompt.
    assert found["1", "spec_pc 16"]["first_reading"] and not found["1", "auto"]["first_reading"]
    assert found["2", "auto"]["first_reading"]
    assert found["2", "auto"]["route"] != "full" and found["2", "auto"]["reason"] != "below_threshold"
    assert "note: auto: of 2 answers, the router's choice gave 1 by full (below_threshold), 1 by " in result.stdout


async def test_repeated_prompts_are_asked_and_counted_once(stack, folder, run):
    write(folder / "prompts.jsonl", *({"prompt": "d" * 300, "expected": "d"} for _ in range(3)))
    result = await run("--budgets", "60", "--routes", "spec_pc")
    assert result.exit_code == 0 and "all prompts: 1\n" in result.stdout and len(stack.target.calls) == 2
    assert f"lines of {folder / 'prompts.jsonl'} that repeat a prompt: 2; each prompt counts once" in result.stderr


async def test_results_may_be_in_another_folder(stack, folder, run):
    (folder / "out").mkdir()
    assert (await run("--limit", 1, "--results", folder / "out")).exit_code == 0
    assert (await run("--limit", 1, "--results", folder / "other.jsonl")).exit_code == 0
    found = (folder / "out" / "prompts.results.jsonl", folder / "other.jsonl")
    assert [len(path.read_text().splitlines()) for path in found] == [5, 5]


async def test_the_arms_take_turns(stack, folder, run):
    assert (await run()).exit_code == 0
    order = [(line["id"], ARMS.index(line["arm"])) for line in map(json.loads, results_lines(folder))]
    assert order == [(f"q{n}", (n + place) % 5) for n in range(3) for place in range(5)]


def results_lines(folder):
    return (folder / "prompts.results.jsonl").read_text().splitlines()


async def test_the_page_shows_what_was_kept_in_the_worst_cases(stack, folder, run):
    stack.target.answer = lambda request: request.token_ids[: 8 if len(request.token_ids) > 100 else 2]
    write(folder / "prompts.jsonl", {"id": "<q>", "prompt": "<script>x" + "d" * 300 + "why?"})
    result = await run("--html", folder / "page.html", "--routes", "spec_pc,spec_kv", "--budgets", "60")
    assert result.exit_code == 0, result.output
    page = (folder / "page.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;q&gt;, spec_pc 60: differs" in page
    assert re.search(r'class="h\d k0"[^>]*>d+<', page) and "kept 60 of 313 tokens" in page
    assert "worst cases" in result.stdout and "<q>, spec_pc 60: differs" in result.stdout


async def test_ctrl_c_keeps_what_is_done(stack, folder, words):
    """And the next run asks for the rest alone."""
    gate = stack.target.gate
    stack.target.answer = lambda request: request.token_ids[::-1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from presift.cli.entry import main; main()", *words(),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": PLACES},
        # Ignored signals are inherited: by tests that run in the background, from their shell.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    results = folder / "prompts.results.jsonl"
    await stack.settle(lambda: results.exists() and len(results_lines(folder)) >= 3)
    stack.target.pause_after = 1
    await stack.settle(lambda: stack.target.running == 1 and len(stack.target.calls) == len(results_lines(folder)) + 1)
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    assert process.returncode == 130 and b"the same command continues" in errors and b"Traceback" not in errors
    done = kept(folder)
    await stack.settle(lambda: stack.target.running == 0)
    assert 3 <= len(done) < 15 and stack.target.cancelled == 1
    gate.set()
    calls = len(stack.target.calls)
    code, _ = await again(words)
    assert code == 0 and set(kept(folder)) == ALL and kept(folder).items() >= done.items()
    assert len(stack.target.calls) == calls + 15 - len(done)


async def again(words, *arguments):
    result = await asyncio.to_thread(CliRunner().invoke, app, words(*arguments))
    return result.exit_code, result.stderr


async def test_a_finished_evaluation_asks_for_nothing(stack, folder, words):
    await again(words)
    calls = len(stack.target.calls)
    code, errors = await again(words, "--limit", 2)
    assert code == 0 and "0 answers to ask for" in errors and len(stack.target.calls) == calls
    code, errors = await again(words, "--limit", 1, "--temperature", 0.5)
    assert code == 0 and "5 answers to ask for" in errors and len(stack.target.calls) == calls + 5
    code, errors = await again(words, "--limit", 1, "--budgets", "60,25%,61")
    assert code == 0 and "2 answers to ask for" in errors


async def test_an_error_of_one_prompt_is_a_result(stack, folder, run):
    write(folder / "prompts.jsonl", {"prompt": "d" * 5000}, {"prompt": "d" * 300})
    result = await run("--budgets", "60")
    assert result.exit_code == 0, result.output
    assert "note: full: 1 requests failed; 1 of them: prompt is 5000 tokens" in result.stdout
    assert kept(folder)["1", "full"]["error"]["kind"] == "PromptTooLong"
    assert kept(folder)["1", "spec_pc 60"]["answer"]["read_tokens"] == 60


async def test_an_error_of_one_call_is_asked_for_again(stack, folder, run):
    stack.target.pause_after = 1
    result = await run("--limit", 1, "--budgets", "60", "--deadline", 0.3)
    assert result.exit_code == 1 and "note: answers missing: 3; the same command" in result.stdout
    assert re.search("note: spec_kv 60: 1 requests failed; 1 of them: .*deadline", result.stdout, re.IGNORECASE)
    stack.target.gate.set()
    assert (await run("--limit", 1, "--budgets", "60")).exit_code == 0 and len(kept(folder)) == 3


async def test_a_failed_call_may_have_read_its_prompt(stack, folder, run):
    """So the next answer to it is no first reading."""
    flags = ("--limit", 1, "--routes", "spec_kv,spec_pc", "--budgets", "60")
    stack.target.faults.append(raises(DeadlineExceeded("the deadline passed")))
    assert (await run(*flags)).exit_code == 1
    first = {arm: line["answer"]["first_reading"] for (_, arm), line in kept(folder).items()}
    assert first == {"spec_kv 60": False, "spec_pc 60": False}
    assert (await run(*flags)).exit_code == 0
    assert not kept(folder)["q0", "full"]["answer"]["first_reading"]


async def test_a_lost_service_ends_the_run(stack, folder, run, monkeypatch):
    monkeypatch.setattr("presift.cli.evaluation.runner._PAUSE_S", 0.01)
    stack.target.die_after = 2
    result = await run()
    assert result.exit_code == 1 and result.stderr.splitlines()[-1].startswith("error: ") and result.stdout == ""
    assert len(stack.target.calls) >= 5 and kept(folder) == {}


async def test_overload_is_waited_for(stack, folder, run):
    stack.target.faults.extend(raises(Overloaded("max_waiting", "64", "64", 0.05)) for _ in range(2))
    assert (await run("--limit", 1)).exit_code == 0 and len(kept(folder)) == 5


async def test_concurrency_is_bounded(stack, folder, run):
    stack.target.pause_after = 1
    task = asyncio.create_task(run("--concurrency", 2))
    await stack.settle(lambda: stack.target.running == 2)
    await asyncio.sleep(0.2)
    assert stack.target.running == 2
    stack.target.gate.set()
    assert (await task).exit_code == 0 and set(kept(folder)) == ALL


async def test_an_unauthenticated_run_ends_at_once(open_stack, folder):
    stack = await open_stack(auth_interceptors=(AuthInterceptor(key_authenticator()),), salt="deployment")
    words = ["eval", str(folder / "prompts.jsonl"), "--address", stack.address]
    result = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and stack.target.calls == []


async def test_misuse_is_an_error_before_any_request(stack, folder, run):
    for arguments, message in (
        (("--routes", "spec_cp"), "routes has 'spec_cp'"),
        (("--budgets", "2x"), "budgets has '2x'"),
        (("--html", folder), "cannot be written"),
        (("--json", folder / "none" / "out.json"), "cannot be written"),
        (("--results", folder / "prompts.jsonl"), "line 1 is not a result of presift eval"),
    ):
        result = await run(*arguments)
        assert result.exit_code == 1 and message in result.stderr and result.stdout == ""
    write(folder / "prompts.jsonl", {"prompt": "a"}, {"prompt": "b", "expected": 5})
    result = await run()
    assert result.exit_code == 1 and "prompts.jsonl, line 2: expected is 5" in result.stderr
    assert stack.target.calls == []


async def test_a_route_that_is_not_served(open_stack, folder):
    stack = await open_stack()
    words = ["eval", str(folder / "prompts.jsonl"), "--address", stack.address, "--routes", "spec_kv"]
    result = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert result.exit_code == 1 and "routes has 'spec_kv', which is not served here" in result.stderr
