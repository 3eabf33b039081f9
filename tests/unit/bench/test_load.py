"""The load test's trace, and its table from reports that bench_serving and aiperf wrote: ten requests, one refused."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from load import run, servers
from load.generators import GENERATORS
from load.table import Cell, median, routes, row, rows, table
from load.trace import bodies, prompt_tokens, words_of, write

from presift.orchestrator.api.http.schema.bodies import ChatBody

REPORTS = Path(__file__).parent / "load_reports"
RECORDED = {name: json.loads((REPORTS / f"{name}.json").read_text()) for name in GENERATORS}
# Of the prompts in the reports' trace; the server refused the fourth.
LENGTHS = [521, 602, 602, 602, 521, 457, 187, 490, 95, 587]


def count(messages):
    return sum(len(message["content"].split()) for message in messages)


def measured(name, report=None, lengths=LENGTHS):
    generator, report = GENERATORS[name], report or RECORDED[name]
    return row(generator.requests(report), generator.seconds(report), lengths)


def test_the_trace_is_a_pure_function_of_its_seed():
    assert bodies(40, 1, (100, 200), 8) == bodies(40, 1, (100, 200), 8) != bodies(40, 2, (100, 200), 8)


def test_the_trace_repeats_documents_and_requests_and_continues_conversations():
    chats = [body["messages"] for body in bodies(40, 1, (300, 400), 8)]
    documents = [chat[0]["content"].rpartition("\n\n")[0] for chat in chats]
    assert len(chats) == 40
    assert len(set(documents)) < 30
    assert len({json.dumps(chat) for chat in chats}) < 40
    turns = [len(chat) for chat in chats]
    assert max(turns) >= 5 and set(turns) <= {1, 3, 5, 7, 9}
    longer = next(chat for chat in chats if len(chat) >= 3)
    assert any(chat == longer[: len(chat)] for chat in chats if len(chat) < len(longer))
    assert min(len(document.split()) for document in documents) < 100


def test_a_body_is_one_of_the_chat_api_with_texts_that_both_sides_read_alike():
    for body in bodies(20, 1, (100, 200), 8):
        asked = ChatBody.model_validate({"model": "any", "stream": True, **body})
        assert asked.max_tokens == 8
        assert all(isinstance(message["content"], str) for message in body["messages"])


def test_lengths_are_asked_for_in_tokens():
    def pairs(messages):
        return 2 * count(messages)

    words = words_of(2000, pairs)
    lengths = [pairs(body["messages"][:1]) for body in bodies(40, 1, (words, words), 8)]
    assert 1960 <= max(lengths) <= 2040


def test_the_files_hold_the_trace_and_the_length_of_each_prompt(tmp_path):
    requests = bodies(10, 1, (100, 200), 8)
    write(tmp_path, requests, count)
    assert [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()] == requests
    assert prompt_tokens(tmp_path) == [count(body["messages"]) for body in requests]


def test_the_row_of_bench_serving_is_what_it_reports_itself():
    report, found = RECORDED["bench_serving"], measured("bench_serving")
    assert (found.completed, found.errors) == (report["completed"], 1) == (9, 1)
    names = {
        "requests_per_s": "request_throughput",
        "output_tokens_per_s": "output_throughput",
        "ttft_p50_ms": "median_ttft_ms",
        "ttft_p95_ms": "p95_ttft_ms",
        "ttft_p99_ms": "p99_ttft_ms",
        "gap_p50_ms": "median_itl_ms",
        "gap_p95_ms": "p95_itl_ms",
    }
    for ours, theirs in names.items():
        assert getattr(found, ours) == pytest.approx(report[theirs]), ours
    # Its own count of input tokens is wrong with transformers 5: two for each prompt.
    assert report["total_input_tokens"] == 2 * 9
    assert found.input_tokens_per_s == pytest.approx((sum(LENGTHS) - LENGTHS[3]) / report["duration"])


def test_the_row_of_aiperf_is_what_it_reports_itself():
    report, found = RECORDED["aiperf"]["summary"], measured("aiperf")
    assert (found.completed, found.errors) == (report["request_count"]["avg"], report["error_request_count"]["avg"])
    for name in ("p50", "p95", "p99"):
        assert getattr(found, f"ttft_{name}_ms") == pytest.approx(report["time_to_first_token"][name])
    for name in ("p50", "p95"):
        assert getattr(found, f"gap_{name}_ms") == pytest.approx(report["inter_chunk_latency"][name])
    seconds = report["benchmark_duration"]["avg"]
    assert found.requests_per_s == pytest.approx(report["request_count"]["avg"] / seconds, rel=0.01)
    assert found.input_tokens_per_s == pytest.approx(report["total_usage_prompt_tokens"]["avg"] / seconds, rel=0.01)
    assert found.output_tokens_per_s == pytest.approx(report["total_output_tokens"]["avg"] / seconds, rel=0.01)


@pytest.mark.parametrize("fault", ["no first token", "no last chunk"])
def test_a_stream_that_failed_is_an_error_though_the_generator_counts_an_answer(fault):
    report = json.loads(json.dumps(RECORDED["bench_serving"]))
    if fault == "no first token":
        report["ttfts"][0], report["itls"][0] = 0.0, []
    else:
        report["input_lens"][0] = 2
    whole, found = measured("bench_serving"), measured("bench_serving", report)
    assert (found.completed, found.errors) == (8, 2)
    assert found.ttft_p50_ms != whole.ttft_p50_ms and found.output_tokens_per_s < whole.output_tokens_per_s


@pytest.mark.parametrize("name", GENERATORS)
def test_reports_of_another_trace_are_refused(name):
    with pytest.raises(ValueError, match="10 requests were sent; the trace has 9"):
        measured(name, lengths=LENGTHS[1:])
    with pytest.raises(ValueError, match=r"prompts of \[95, .*those of the trace have \[96, "):
        measured(name, lengths=[length + 1 for length in LENGTHS])


def test_without_an_answer_there_are_no_times():
    sent = [replace(each, error="refused") for each in GENERATORS["aiperf"].requests(RECORDED["aiperf"])]
    found = row(sent, 2.0, LENGTHS)
    assert (found.completed, found.errors, found.requests_per_s) == (0, 10, 0)
    assert math.isnan(found.ttft_p50_ms)


def cells(*durations):
    for repetition, duration in enumerate(durations):
        report = RECORDED["bench_serving"] | {"duration": duration, "applied": {"spec_pc": 7, "full": 2}}
        yield Cell("bench_serving", math.inf, "presift spec_pc", repetition), report


def test_the_table_has_the_median_of_the_repetitions_and_the_routes_of_all():
    other = Cell("bench_serving", 0.5, "sglang", 0), RECORDED["bench_serving"] | {"applied": {}}
    reports = [other, *cells(1.0, 9.0, 3.0)]
    found = rows(reports, LENGTHS)
    assert [key[1:] for key in found] == [("0.5", "sglang"), ("inf", "presift spec_pc")]
    many = found["bench_serving", "inf", "presift spec_pc"]
    assert [each.requests_per_s for each in many] == [9, 1, 3]
    assert median(many).requests_per_s == 3
    *_, last = table(found, routes(reports)).splitlines()
    assert last.startswith("| bench_serving | inf | presift spec_pc | 3 | 9 | 1 | 3.000 | ")
    assert last.endswith(" | full 6, spec_pc 21 |")


def options(tmp_path, *more):
    words = ["--target=/models/a", "--draft=/models/b", f"--results={tmp_path}", *more]
    return run._parser().parse_args(words)


def test_a_cell_that_is_there_is_not_measured_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "_counter", lambda target: count)
    done = []

    def measure(cell, asked, folder):
        done.append(cell.name)
        lengths = prompt_tokens(folder)
        size = len(lengths)
        lists = {"ttfts": [1.0] * size, "itls": [[0.1]] * size, "output_lens": [8] * size, "errors": [""] * size}
        return {"duration": 2.0, "input_lens": lengths, "applied": {}, **lists}

    monkeypatch.setattr(run, "_measure", measure)
    words = ["--rates=0.5,inf", "--routes=spec_pc", "--repetitions=2", "--count=10", "--tokens=100,200"]
    for _ in range(2):
        monkeypatch.setattr(run.sys, "argv", ["run", "--target=a", "--draft=b", f"--results={tmp_path}", *words])
        assert run.main() == 0
    assert len(done) == len(set(done)) == 2 * 2 * 2
    assert capsys.readouterr().out.count("| bench_serving | inf | sglang | 2 | 10 | 0 | 5.000 |") == 2
    # Another repetition measures only what is new.
    monkeypatch.setattr(
        run.sys, "argv", ["run", "--target=a", "--draft=b", f"--results={tmp_path}", *words, "--repetitions=3"]
    )
    run.main()
    assert len(done) == 12
    monkeypatch.setattr(run.sys, "argv", ["run", "--target=a", "--draft=c", f"--results={tmp_path}", *words])
    with pytest.raises(SystemExit, match=r"draft is /.*/c; .* was measured with /.*/b\."):
        run.main()


def test_the_sides_of_a_rate_follow_each_other(tmp_path):
    asked = options(tmp_path, "--rates=1,inf", "--routes=auto,spec_kv", "--repetitions=1")
    sides = [(cell.rate, cell.side) for cell in run._cells(asked)]
    assert sides[:3] == [(1, "sglang"), (1, "presift auto"), (1, "presift spec_kv")]
    assert len(sides) == 6


def test_only_presift_gets_a_route_and_a_budget(tmp_path):
    asked = options(tmp_path, '--budget={"max_prompt_tokens": 512}')
    assert run._extra("sglang", asked) == {}
    extra = run._extra("presift spec_pc", asked)
    assert extra == {"presift": {"route": "spec_pc", "budget": {"max_prompt_tokens": 512}}}
    ChatBody.model_validate({"model": "any", **bodies(10, 1, (10, 20), 8)[0], **extra})


@pytest.mark.parametrize("words", ["--rates=0", "--rates=x", "--routes=fast", "--tokens=5,4", "--generators=ab"])
def test_a_wrong_option_is_refused(words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        options(tmp_path, words)
    assert words.split("=", maxsplit=1)[0] in capsys.readouterr().err


def test_the_routes_that_were_applied_are_read_from_the_metrics():
    text = """# HELP presift_requests_total Decisions
presift_requests_total{presift_reason="chosen",presift_route="spec_pc"} 4.0
presift_requests_total{presift_reason="short",presift_route="full"} 2.0
presift_requests_total{presift_reason="draft_failed",presift_route="full"} 1.0
presift_requests_created{presift_route="full"} 9.0
"""
    assert servers.applied(text) == {"spec_pc": 4, "full": 3}
