"""Large and lying bodies at the HTTP door: bounded before they are worked on, and worked on beside the event loop."""

import json
import threading
from functools import partial
from types import SimpleNamespace

import pytest
from google.protobuf import json_format
from pydantic import ValidationError

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http import body, endpoints, requests
from presift.orchestrator.api.http.schema import ChatAsked, Place

from ..fakes.openai_door import MODEL

CHAT = [{"role": "user", "content": "abcde"}]


@pytest.fixture
async def door(open_house, open_door):
    return await open_door(await open_house(), max_body_bytes=2**26)


@pytest.fixture
def threads(monkeypatch):
    """name of a step -> whether it ran in the event loop's thread."""
    seen = {}

    def step(name, work, *args):
        seen.setdefault(name, set()).add(threading.current_thread() is threading.main_thread())
        return work(*args)

    for name in (
        "parsed",
        "json_object",
        "generate_request",
        "request_from_wire",
        "explain_request_from_wire",
        "as_json",
    ):
        monkeypatch.setattr(endpoints, name, partial(step, name, getattr(endpoints, name)))
    return seen


READ = ("json_object", "parsed", "generate_request", "request_from_wire")


async def test_a_large_body_is_read_in_another_thread(door, threads):
    asked = {"model": MODEL, "messages": CHAT, "max_tokens": 5}
    assert (await door.post(asked)).status_code == 200
    assert threads == {name: {True} for name in READ}
    threads.clear()
    answer = await door.post(asked | {"messages": [{"role": "user", "content": "a" * body.ASIDE_BYTES}]})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert threads == {name: {False} for name in READ}


async def test_an_explanation_is_written_in_another_thread(door, threads):
    answer = await door.post({"model": MODEL, "messages": CHAT, "presift": {"explain": {"span_per_token": True}}})
    assert answer.json()["presift"]["explanation"]["spans"]
    assert threads["as_json"] == threads["explain_request_from_wire"] == {False}


class Part:
    """Counts how often it is marked."""

    marks = 0

    def __setattr__(self, name, value):
        Part.marks += 1


def test_marks_cost_as_much_as_there_are_parts(monkeypatch):
    monkeypatch.setattr(Part, "marks", 0)
    message = SimpleNamespace(parts=[Part() for _ in range(100)])
    requests._mark([message], [Place(message=number) for number in (0, -1) * 50], "protected")
    assert Part.marks == 100


def test_places_that_say_the_same_are_one():
    parts = [{"type": "text", "text": text} for text in "abc"]
    places = [{"message": 1, "part": 1}, {"message": -1, "part": 1}, {"message": 0}, {"message": 0, "part": 0}]
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": parts}]
    asked = ChatAsked.model_validate({"model": MODEL, "messages": messages, "presift": {"protected": places}})
    made = requests.generate_request(asked, 5).prompt.chat.messages
    assert [[part.protected for part in message.parts] for message in made] == [[True], [False, True, False]]


LISTS = {
    "messages": {"messages": [{}] * 1000},
    "parts": {"messages": [{"role": "user", "content": [{}] * 1000}]},
    "places": {"presift": {"protected": [{}] * 1000}},
    "spans": {"presift": {"protected_spans": [1] * 1000}},
    "tools": {"tools": [1] * 500},
    "unknown keys": {f"key {number}": 1 for number in range(1000)},
    "unknown keys of a message": {"messages": [{f"key {number}": 1 for number in range(1000)}]},
}


@pytest.mark.parametrize("change", LISTS.values(), ids=LISTS)
def test_of_many_errors_few_are_made(change):
    with pytest.raises(ValidationError) as wrong:
        ChatAsked.model_validate({"model": MODEL, "messages": CHAT} | change)
    assert wrong.value.error_count() < 5


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"sampling": {"stop_token_ids": [1] * 257}}, "presift.sampling.stop_token_ids"),
        ({"sampling": {"top_k": [1] * 257}}, "presift.sampling.top_k"),
        ({"protected_spans": [{"start": 0, "end": 1}] * 16_385}, "presift.protected_spans"),
    ],
)
async def test_options_are_bounded_before_they_are_converted(door, monkeypatch, options, param):
    monkeypatch.setattr(json_format, "ParseDict", None)
    error = (await door.post({"model": MODEL, "prompt": [1], "presift": options}, "/v1/completions")).json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_value"), error


def test_values_are_bounded_before_they_are_made(monkeypatch):
    monkeypatch.setattr(body, "from_json", None)
    for raw in (
        b"[" + b"{}," * body.MAX_NESTED + b"{}]",
        b"[" * (body.MAX_NESTED + 1),
        b"{" + b'"k":1,' * body.MAX_NESTED + b"}",
        b"[" + b"1," * (body.MAX_VALUES + 1) + b"1]",
        b'{"a\\"":[' + b'"\\\\",' * (body.MAX_VALUES + 1) + b"1]}",
    ):
        with pytest.raises(InvalidRequest, match="body is of more values"):
            body.json_object(raw)


def test_texts_hold_as_many_commas_and_brackets_as_they_like():
    text = ',:[{"\\' * (body.MAX_VALUES + 2)
    assert body.json_object(json.dumps({"a": text, "b": [1, 2]}).encode()) == {"a": text, "b": [1, 2]}
