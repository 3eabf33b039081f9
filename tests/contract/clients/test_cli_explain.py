"""`presift explain` against a real orchestrator."""

import asyncio
import base64
import json

import pytest
import typer
from typer.testing import CliRunner

from presift.cli.app import app
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.v1 import plan_pb2

from ..fakes.services import kept_kv, model
from ..fakes.stack import ALL_ROUTES, KV_CAPACITY, KV_WINDOW


@pytest.fixture
async def stack(open_stack):
    return await open_stack(routes=ALL_ROUTES, target=model("target", context_tokens=4000))


@pytest.fixture
def run(stack, tmp_path):
    """Arguments -> the result of the command, for a document in a file and a question."""
    document = tmp_path / "document.txt"
    document.write_text("<script>alert(1)</script> " + "d" * 1100, encoding="utf-8")

    async def run(*arguments):
        words = ["explain", "--file", document, "--question", "why?", "--address", stack.address, *arguments]
        return await asyncio.to_thread(CliRunner().invoke, app, [str(word) for word in words])

    return run


async def test_dropped_text_is_marked_without_a_terminal(stack, run):
    result = await run("--route", "spec_pc", "--max-prompt-tokens", 60)
    assert result.exit_code == 0 and stack.target.calls == []
    assert "[spec_pc: requested" in result.output and "kept 60 of " in result.output
    text = result.output.split("[-dropped-]", 1)[1]
    assert text.count("[-") == text.count("-]") == 1 and text.strip().endswith("why?</user><assistant>")
    assert "<user><script>" in text


async def test_the_target_reports_kv_on_routes_that_drop_kv(stack, run):
    result = await run("--route", "spec_kv", "--max-kv-tokens", 60)
    (call,) = stack.target.calls
    assert result.exit_code == 0 and call.kv_plan.report_kept
    assert "4 layers, 2 KV heads" in result.output and "coverage in the target 0.75" in result.output


async def test_the_target_is_not_called_without_a_kv_map(stack, run):
    result = await run("--route", "spec_kv", "--max-kv-tokens", 60, "--no-kv-map")
    assert result.exit_code == 0 and stack.target.calls == [] and "in the target" not in result.output


async def test_budgets_and_options_are_sent(stack, run):
    flags = ["--kv-selection", "draft_mask", "--no-keep-full-prefix", "--max-kv-tokens", 61, "--compress-above", 5]
    assert (await run("--route", "spec_kv", *flags)).exit_code == 0
    (call,) = stack.target.calls
    assert call.kv_plan.policy.capacity == 60 and call.kv_plan.HasField("kv_mask")
    refused = await run("--route", "spec_pc", "--max-prompt-tokens", 10, "--strict")
    assert refused.exit_code == 1 and "strict budget not met" in refused.stderr and refused.stdout == ""


async def test_a_page(run, tmp_path):
    page = tmp_path / "page.html"
    result = await run("--route", "spec_kv", "--max-kv-tokens", 60, "--html", page)
    assert result.exit_code == 0 and result.stdout == ""
    assert "[spec_kv: requested" in result.stderr and f"wrote {page}" in result.stderr
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;" in text and text.count('alt="layer') == 8


@pytest.mark.parametrize("place", ["", "none/page.html"])
async def test_an_unwritable_page_is_an_error_before_any_call(stack, run, tmp_path, place):
    result = await run("--html", tmp_path / place)
    assert result.exit_code == 1 and "cannot be written" in result.stderr and stack.draft.calls == []


async def test_dropped_tokens_are_those_of_the_target(stack, run):
    result = await run("--route", "spec_kv", "--compress-above", 5, "--max-kv-tokens", 60)
    (call,) = stack.target.calls
    spans = [(span.start, span.end) for span in call.kv_plan.protected_spans]
    capacity, window = call.kv_plan.policy.capacity, call.kv_plan.policy.window
    kept = kept_kv(len(call.token_ids), capacity, window, spans=spans)
    dropped = int((~kept.any(axis=(0, 1))).sum())
    assert f"{dropped} tokens are dropped everywhere" in result.output
    assert (capacity, window) == (59, KV_WINDOW) != (KV_CAPACITY, KV_WINDOW)


async def test_the_routes_compared_are_shown(stack, run, tmp_path):
    result = await run("--max-kv-tokens", 60)
    assert "spec_kv_pc" in result.output and "KV tokens of 60" in result.output.replace("\n", " ")
    page = tmp_path / "page.html"
    assert (await run("--max-kv-tokens", 60, "--html", page)).exit_code == 0
    assert "KV tokens of 60" in page.read_text()
    assert '<tr class=chosen><td data-head="route">spec_kv</td>' in page.read_text()


async def test_route_predicts_from_what_an_orchestrator_has_learned(open_stack):
    stack = await open_stack(routes=ALL_ROUTES, estimator=CostEstimator())

    async def route(*arguments):
        words = ["route", "--address", stack.address, "--json", *map(str, arguments)]
        return json.loads((await asyncio.to_thread(CliRunner().invoke, app, words)).output)

    before = (await route("--tokens", 300, "--max-new-tokens", 8))["routes"][0]
    for start in range(4):
        await stack.ask([start + 1, *range(1, 300)], route=plan_pb2.ROUTE_FULL)
    calls = len(stack.target.calls) + len(stack.draft.calls)
    found = await route("--tokens", 300, "--max-new-tokens", 8)
    # The fake target takes 7 ms for any prompt; its context is 400 tokens, the threshold of this stack 32.
    assert found["routes"][0]["ttft_ms"] < 30 < before["ttft_ms"]
    assert len(stack.target.calls) + len(stack.draft.calls) == calls
    assert (await route("--tokens", 500))["routes"][0]["why_not"].startswith("is not possible: prompt is 500 tokens")
    assert (await route("--tokens", 300, "--context", 4000))["reason"] == "within_budget"


async def test_route_at_an_address_without_a_server():
    result = await asyncio.to_thread(CliRunner().invoke, app, ["route", "--tokens", "9", "--address", "127.0.0.1:1"])
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and result.stdout == ""


async def test_explain_accepts_the_flags_of_generate(stack, run):
    limits = ("--max-ttft-ms", 900_000, "--min-coverage", 0.01, "--max-new-tokens", 5)
    result = await run("--route", "spec_pc", "--max-prompt-tokens", 60, *limits)
    assert result.exit_code == 0, result.output
    result = await run("--route", "spec_pc", "--max-new-tokens", 0)
    assert result.exit_code == 1 and "max_new_tokens" in result.stderr
    result = await run("--route", "spec_pc", "--continue-prompt-tokens", 5)
    assert result.exit_code == 1 and "continue_prompt_tokens" in result.stderr
    result = await run("--min-coverage", 2)
    assert result.exit_code == 1 and "min_coverage" in result.stderr


async def test_as_json(stack, run, tmp_path):
    result = await run("--route", "spec_kv", "--max-kv-tokens", 60, "--json")
    printed = json.loads(result.output)
    assert printed["decision"]["route"] == "spec_kv" and printed["text"].startswith("<user><script>")
    assert printed["spans"][0]["kept_share"] is not None and printed["kv_mask"]["layers"] == 4
    assert len(base64.b64decode(printed["kv_mask"]["bits"])) == 8 * ((printed["kv_mask"]["prompt_tokens"] + 7) // 8)
    result = await run("--json", "--html", tmp_path / "page.html")
    assert result.exit_code == 1 and "--json or --html" in result.stderr


def test_explain_has_all_flags_of_generate_but_those_of_the_answer():
    flags = {
        command: {option for each in typer.main.get_command(app).commands[command].params for option in each.opts}
        for command in ("generate", "explain")
    }
    assert flags["generate"] - flags["explain"] == {"--temperature", "--json-schema", "--n", "--migrate"}
