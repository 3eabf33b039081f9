"""`presift eval --suite` against a real orchestrator, with packages that are laid out as the real ones."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from presift.cli.app import app

from ...suite_packages import install_all
from ..fakes.services import model
from ..fakes.stack import ALL_ROUTES


@pytest.fixture
async def stack(open_stack):
    return await open_stack(routes=ALL_ROUTES, target=model("target", context_tokens=5000))


@pytest.fixture
def run(stack, tmp_path, monkeypatch):
    """Arguments -> the result of the command, which begins in an empty folder."""
    install_all(tmp_path / "site")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("PRESIFT_HOME", str(tmp_path / "home"))
    flags = ("eval", "--address", stack.address, "--routes", "spec_pc", "--budgets", "25%")
    return lambda *arguments: asyncio.to_thread(CliRunner().invoke, app, list(map(str, (*flags, *arguments))))


def prompts(tmp_path):
    """The lines of the one file of a suite."""
    (file,) = (tmp_path / "home" / "suites").iterdir()
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_ruler(stack, run, tmp_path):
    words = ("--suite", "ruler", "--tasks", "niah_red,niah_blue", "--per-task", 1, "--json", tmp_path / "out.json")
    result = await run(*words)
    assert result.exit_code == 0, result.output
    assert [line["id"] for line in prompts(tmp_path)] == ["niah_red-4096-0", "niah_blue-4096-0"]
    # A token is a byte. Prompt and answer have 4,096, less eleven words that did not fit; the template is not counted.
    text = prompts(tmp_path)[0]["messages"][0]["content"]
    assert 4096 - 132 <= len(text.encode()) + 8 <= 4096
    assert {call.sampling.max_new_tokens for call in stack.target.calls} == {8}
    assert len((tmp_path / "here" / "ruler.results.jsonl").read_text().splitlines()) == 4
    tables = json.loads((tmp_path / "out.json").read_text())["tables"]
    kinds = [table["kind"] for table in tables if table["lengths"] == "all"]
    assert kinds == ["", "niah_red", "niah_blue"] and "prompts of kind niah_red: 1" in result.stdout
    again = await run(*words)
    assert again.exit_code == 0 and "0 answers to ask for" in again.stderr and "1 prompts of niah" not in again.stderr


async def test_agent_sessions(stack, run, tmp_path):
    result = await run("--suite", "agent_sessions", "--lengths", "1k,1k", "--max-new-tokens", 600)
    assert result.exit_code == 0, result.output
    found = prompts(tmp_path)
    assert [line["kind"] for line in found] == ["codex", "codex", "claude"] and "agreement" in result.stdout
    assert all(line["messages"][-1]["role"] == "user" for line in found)


async def test_a_route_that_is_not_served_is_an_error_before_any_prompt_is_made(open_stack, run, tmp_path):
    """The last --address counts."""
    other = await open_stack(target=model("target", context_tokens=5000))
    result = await run("--suite", "ruler", "--address", other.address, "--routes", "spec_kv")
    assert result.exit_code == 1 and "routes has 'spec_kv', which is not served here" in result.stderr
    assert not list(tmp_path.glob("home/suites/*"))


async def test_misuse_is_an_error_before_any_prompt_is_made(stack, run, tmp_path):
    for arguments, message in (
        ((), "give either FILE.jsonl or --suite"),
        (("--suite", "rulers"), "suite is 'rulers'"),
        (("--suite", "ruler", "--routes", "spec_cp"), "routes has 'spec_cp'"),
        (("--suite", "ruler", "--lengths", "8k"), "lengths has '8k'"),
        (("--suite", "ruler", "--tasks", "niah_green"), "tasks has 'niah_green'"),
        (("--suite", "ruler", "--suite-python", tmp_path / "none"), "which cannot be run"),
    ):
        result = await run(*arguments)
        assert result.exit_code == 1 and message in result.stderr and result.stdout == "", message
    assert not list(tmp_path.glob("home/suites/*")) and stack.target.calls == []
