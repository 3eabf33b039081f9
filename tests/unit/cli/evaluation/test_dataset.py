"""Lines of a file become examples; a faulty one is named."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from presift.cli.app import app
from presift.cli.evaluation.dataset import KEYS, Example, read_dataset
from presift.cli.evaluation.scorers import SCORERS

PAGE = Path(__file__).parents[4] / "clients" / "README.md"


@pytest.fixture
def read(tmp_path):
    """Lines (text, or values written as JSON) -> the dataset."""
    path = tmp_path / "prompts.jsonl"

    def read(*lines, limit=None):
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return read_dataset(path, limit)

    return read


CHAT = [{"role": "user", "content": [{"text": "a document", "document": True}, {"text": "why?"}]}]


def test_both_kinds_of_prompts(read):
    first, second = read({"prompt": "hi", "expected": "yo"}, "", {"id": 7, "messages": CHAT}).examples
    assert (first.id, dict(first.prompt), first.expected, first.scorer) == ("1", {"prompt": "hi"}, ("yo",), "contains")
    assert (second.id, dict(second.prompt), second.expected, second.scorer) == ("7", {"messages": CHAT}, (), None)
    assert second.score("anything") is None and first.score("Yo!") == 1


def test_equal_prompts_have_equal_digests():
    digests = [Example(id_, {"prompt": prompt}).digest for id_, prompt in (("a", "hi"), ("b", "hi"), ("c", "ho"))]
    assert digests[0] == digests[1] != digests[2]


def test_a_repeated_prompt_counts_once(read):
    line = {"prompt": "hi", "expected": ["yo", "ho"]}
    dataset = read(line, {"prompt": "ho"}, {"id": "x"} | line, line | {"scorer": "contains"}, {"id": "1"} | line)
    assert [example.id for example in dataset.examples] == ["1", "2"] and dataset.repeated == 3
    assert read(line, {"prompt": "ho", "expected": "yo"}).repeated == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expected": "B"}, 'expected is ["B"]; it must be ["A"] as in line 1, which has the same prompt'),
        ({"scorer": "exact"}, 'scorer is "exact"; it must be "choice" as in line 1, which has the same prompt'),
        ({"choices": ["A", "C"]}, 'choices is ["A", "C"]; it must be ["A", "B"] as in line 1, which has'),
        ({"choices": None, "expected": None}, 'expected is []; it must be ["A"] as in line 1, which has'),
    ],
)
def test_a_repeated_prompt_must_expect_the_same(read, change, message):
    line = {"prompt": "A or B?", "choices": ["A", "B"], "expected": "A"}
    with pytest.raises(ValueError) as error:
        read(line, "", line | change)
    assert f"prompts.jsonl, line 3: {message}" in str(error.value)


def test_unknown_keys_are_harmless_and_named(read):
    dataset = read({"prompt": "hi", "source": 1}, {"prompt": "ho", "source": 2, "tools": []})
    assert len(dataset.examples) == 2 and dataset.ignored == ("source", "tools")


def test_only_the_first_are_read(read):
    assert [example.id for example in read({"prompt": "a"}, "", {"prompt": "b"}, "{", limit=2).examples] == ["1", "3"]


def test_a_limit_and_a_kind(read):
    """Answers with other limits are other answers; a prompt without a limit keeps the digest that it always had."""
    plain, limited, other = read(*({"id": str(n), "prompt": "hi"} | more for n, more in enumerate(LIMITS))).examples
    assert (limited.kind, limited.max_new_tokens) == ("qa", 8) and (plain.kind, plain.max_new_tokens) == ("", None)
    assert len({plain.digest, limited.digest, other.digest}) == 3
    assert plain.digest == "bbab304eadd046fe16c34bcfe99be2e8"


LIMITS = ({}, {"kind": "qa", "max_new_tokens": 8}, {"max_new_tokens": 9})


def test_choices_are_scored_by_choice(read):
    (example,) = read({"prompt": "A or B?", "choices": ["A", "B"], "expected": "B"}).examples
    assert example.scorer == "choice" and example.score("B, because") == 1 and example.score("A") == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "the line is [1]; it must be a JSON object"),
        ({}, "has no prompt; give either prompt or messages"),
        ({"prompt": "a", "messages": CHAT}, "has prompt and messages"),
        ({"prompt": 5}, "prompt is 5; it must be a string"),
        ({"prompt": ""}, 'prompt is ""; it must be a string'),
        ({"messages": []}, "messages is []; it must be a list of objects"),
        ({"messages": ["hi"]}, 'messages is ["hi"]; it must be a list of objects'),
        ({"messages": [{"content": "hi"}]}, "messages[0] has no role"),
        ({"messages": [{"role": "user", "content": 5}]}, 'messages is [{"role": "user", "content": 5}]; it must be'),
        ({"messages": [{"role": 5, "content": "x"}]}, "a list of objects whose role and text are strings"),
        ({"prompt": "a", "id": ""}, 'id is ""; it must be a string'),
        ({"prompt": "a", "id": True}, "id is true; it must be a string"),
        ({"prompt": "a", "id": "1"}, 'id is "1"; it must be different'),
        ({"prompt": "a", "kind": 5}, "kind is 5; it must be a string"),
        ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens is 0; it must be a number of tokens, 1 or more"),
        ({"prompt": "a", "max_new_tokens": True}, "max_new_tokens is true; it must be a number of tokens"),
        ({"prompt": "a", "expected": 5}, "expected is 5; it must be a string or a list of strings"),
        ({"prompt": "a", "expected": []}, "expected is []; it must be"),
        ({"prompt": "a", "expected": ["x", " "]}, 'expected is ["x", " "]; it must be'),
        ({"prompt": "a", "expected": "x", "scorer": "f2"}, 'scorer is "f2"; it must be one of contains, '),
        ({"prompt": "a", "scorer": "exact"}, "expected is missing; it must be set where scorer is exact"),
        ({"prompt": "a", "expected": "x", "scorer": "choice"}, "choices is missing; it must be a list of strings"),
        ({"prompt": "a", "choices": ["x", "y"]}, "expected is missing; it must be one of the choices (x, y)"),
        ({"prompt": "a", "choices": ["x", "y"], "expected": "z"}, 'expected is ["z"]; it must be one of the choices'),
    ],
)
def test_an_error_names_line_field_and_value(read, line, message):
    with pytest.raises(ValueError) as error:
        read({"prompt": "fine"}, "", line)
    assert "prompts.jsonl, line 3" in str(error.value) and message in str(error.value)


def test_a_long_value_is_cut(read):
    with pytest.raises(ValueError) as error:
        read({"prompt": "a", "expected": {"x": "y" * 5000}})
    assert len(str(error.value)) < 400


def test_an_empty_file(read):
    with pytest.raises(ValueError, match="has no prompts"):
        read("", " ")


def test_help_and_the_page_for_people_name_every_key_and_scorer(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    words = CliRunner().invoke(app, ["eval", "--help"]).output
    page = PAGE.read_text(encoding="utf-8").partition("### Compare routes on your own prompts")[2]
    for name in (*KEYS, *SCORERS):
        assert name in words and f"`{name}`" in page
