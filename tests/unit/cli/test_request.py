"""From flags to the options of a request."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from presift.cli.flags import PromptFlags, RequestFlags
from presift.cli.request import budget_options, form_options, prompt_options, read_text
from presift_client.requests import generate_request


def test_only_given_flags_become_options():
    assert budget_options(RequestFlags()) == {"strict": False}
    options = budget_options(RequestFlags(max_kv_tokens=5, compress_above=0, strict=True))
    assert options == {"max_kv_tokens": 5, "compress_above_tokens": 0, "strict": True}


def test_a_plain_prompt_is_sent_unchanged():
    assert prompt_options(PromptFlags(prompt="hi")) == {"prompt": "hi"}


def test_documents_come_before_the_protected_question(tmp_path):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text(f"text of {path.name} ü", encoding="utf-8")
    options = prompt_options(PromptFlags(question="why?", document=paths, system="be brief"))
    system, user = options["messages"]
    assert system == {"role": "system", "content": "be brief"} and user["role"] == "user"
    assert user["content"] == [
        {"text": "text of a.txt ü\n\n", "document": True},
        {"text": "text of b.txt ü\n\n", "document": True},
        {"text": "why?", "protected": True},
    ]
    prompt = options.pop("prompt", None)
    assert generate_request(prompt, options).prompt.HasField("chat")


def test_a_question_alone():
    options = prompt_options(PromptFlags(question="why?"))
    assert [message["role"] for message in options["messages"]] == ["user"]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"prompt": "a", "question": "b"},
        {"prompt": "a", "document": [Path("x")]},
        {"prompt": "a", "system": "s"},
    ],
)
def test_misuse(flags):
    with pytest.raises(ValueError, match="--question"):
        prompt_options(PromptFlags(**flags))


def test_a_missing_file(tmp_path):
    with pytest.raises(OSError):
        prompt_options(PromptFlags(question="why?", document=[tmp_path / "none"]))


def test_a_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"image\.png.*byte 2"):
        read_text(path)


def test_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO("ünï".encode())))
    assert read_text(Path("-")) == "ünï"


def test_form_of_the_answer(tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    assert form_options(None, 1) == {}
    options = form_options(schema, 2)
    assert options == {"json_schema": {"type": "object"}, "choices": 2}
    assert generate_request("x", options).choices == 2


def test_tools_belong_to_the_prompt(tmp_path):
    path = tmp_path / "tools.json"
    path.write_text('[{"name": "add"}]')
    assert prompt_options(PromptFlags(question="hi", tools=path))["tools"] == [{"name": "add"}]
    with pytest.raises(ValueError, match="--tools need --question"):
        prompt_options(PromptFlags(prompt="hi", tools=path))


@pytest.mark.parametrize(("text", "why"), [("{", "is not JSON"), ("{}", "is not a JSON list of tools")])
def test_files_that_are_refused(tmp_path, text, why):
    path = tmp_path / "tools.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"tools.json {why}"):
        prompt_options(PromptFlags(question="hi", tools=path))
