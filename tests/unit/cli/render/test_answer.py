"""From flags to a request, from a decision to a line."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from presift.cli.render.answer import decision_line, options, prompt_options, read, replica_line, usage_line
from presift_client import Decision, Model, Replica, Usage
from presift_client.requests import generate_request

MODEL = Model("m", "r", 100)
DECISION = Decision(
    "spec_pc", "over_budget", "9 prompt tokens exceed 4", 9, 4, 4, 1, 0.875, "hit", MODEL, MODEL, 1.0, 2.0, 3.0
)


def test_flags_that_were_not_given_are_left_out():
    assert options(route="auto", max_kv_tokens=None, strict=False, temperature=0.0) == {
        "route": "auto",
        "strict": False,
        "temperature": 0.0,
    }


def test_a_prompt_is_read_as_it_is():
    assert prompt_options("hi", None, [], None) == {"prompt": "hi"}


def test_documents_stand_before_the_protected_question(tmp_path):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text(f"text of {path.name} ü", encoding="utf-8")
    made = prompt_options(None, "why?", paths, "be brief")
    system, user = made["messages"]
    assert system == {"role": "system", "content": "be brief"} and user["role"] == "user"
    assert user["content"] == [
        {"text": "text of a.txt ü\n\n", "document": True},
        {"text": "text of b.txt ü\n\n", "document": True},
        {"text": "why?", "protected": True},
    ]
    prompt = made.pop("prompt", None)
    assert generate_request(prompt, made).prompt.HasField("chat")


def test_a_question_alone():
    made = prompt_options(None, "why?", [], None)
    assert [message["role"] for message in made["messages"]] == ["user"]


@pytest.mark.parametrize(
    ("prompt", "question", "files", "system"),
    [(None, None, [], None), ("a", "b", [], None), ("a", None, ["x"], None), ("a", None, [], "s")],
)
def test_misuse(prompt, question, files, system):
    with pytest.raises(ValueError, match="--question"):
        prompt_options(prompt, question, files, system)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(OSError):
        prompt_options(None, "why?", [tmp_path / "none"], None)


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"image\.png.*byte 2"):
        read(path)


def test_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO("ünï".encode())))
    assert read(Path("-")) == "ünï"


def test_decision_line():
    line = decision_line(DECISION)
    for word in ("spec_pc", "over_budget", "9 prompt tokens exceed 4", "kept 4 of 9", "coverage 0.88", "cache hit"):
        assert word in line
    assert "\n" not in line


def test_decision_line_without_coverage():
    assert "coverage" not in decision_line(replace(DECISION, coverage=None))


DROPPED = replace(
    DECISION, route="spec_kv", kv_tokens=257, kv_capacity=256, kv_selection="target_lookahead", keep_full_prefix=True
)


def test_decision_line_where_kv_is_dropped():
    line = decision_line(replace(DROPPED, draft_ms=30.0, prefill_ms=41.0))
    for word in ("257 KV tokens to hold", "C 256", "target_lookahead", "full prefix kept", "41 ms", "30 ms"):
        assert word in line
    assert "\n" not in line
    freed = decision_line(replace(DROPPED, keep_full_prefix=False))
    assert "full prefix freed" in freed and "while the draft worked" not in freed
    assert "KV" not in decision_line(DECISION)


USAGE = Usage(9, 4, 5, 2, 3, "stop", 7.0, 21.4, 80.0)


def test_usage_line():
    line = usage_line(USAGE)
    for word in ("21 ms", "7 ms in the target", "3 tokens", "80 ms", "stop", "held 5 KV tokens for 9", "2 were cached"):
        assert word in line
    assert not any(word in line for word in ("scored", "reused", "coverage"))


def test_usage_line_where_kv_was_dropped():
    chosen = usage_line(replace(USAGE, score_ms=140.2, publish_ms=4.4, coverage=0.875))
    for word in ("scored in 140 ms", "published in 4 ms", "coverage 0.88"):
        assert word in chosen
    found = usage_line(replace(USAGE, reused_entry=True))
    assert "compressed entry reused" in found and "scored" not in found


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "a:1 healthy, 2 in flight"),
        ({"healthy": False, "breaker": "open"}, "a:1 away, breaker open, 2 in flight"),
        ({"unused": "another model"}, "a:1 healthy, 2 in flight, not used: another model"),
    ],
)
def test_how_a_replica_stands(changes, line):
    replica = Replica("a:1", "draft", True, "closed", 2, "", "a:1")
    assert replica_line(replace(replica, **changes)) == line
