"""From flags to a request, from a decision to a line."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from presift.cli.answer import decision_line, options, prompt_options, read, usage_line
from presift_client import Decision, Model, Usage
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
        {"text": "text of a.txt ü\n\n"},
        {"text": "text of b.txt ü\n\n"},
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


def test_usage_line():
    line = usage_line(Usage(9, 4, 4, 0, 3, "stop", 7.0, 21.4, 80.0))
    for word in ("21 ms", "7 ms in the target", "3 tokens", "80 ms", "stop"):
        assert word in line
