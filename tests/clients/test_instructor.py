"""Instructor, in every mode for OpenAI's chat completions, responses and Anthropic's messages."""

from collections.abc import Iterable

import anthropic
import instructor
import openai
import pytest
from instructor import Mode

from .shared import MODEL, PERSON, TOO_LONG, Person, say

ADA = [{"role": "user", "content": "Who is Ada?"}]
SAID = [{"role": "user", "content": say(PERSON.model_dump_json())}]
IN_A_BLOCK = [{"role": "user", "content": say(f"```json\n{PERSON.model_dump_json()}\n```")}]


@pytest.fixture
def patched(base_url):
    """mode -> a client."""

    def patched(mode):
        return instructor.from_openai(openai.OpenAI(base_url=base_url, api_key="none", max_retries=0), mode=mode)

    return patched


MODES = {
    Mode.TOOLS: ADA,
    Mode.TOOLS_STRICT: ADA,
    Mode.JSON_SCHEMA: ADA,
    Mode.JSON: SAID,
    Mode.MD_JSON: IN_A_BLOCK,
}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_create(patched, mode):
    person, answer = patched(mode).chat.completions.create_with_completion(
        model=MODEL, messages=MODES[mode], response_model=Person, max_retries=0
    )
    assert person.model_dump() == PERSON.model_dump()
    assert answer.usage.completion_tokens > 0


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON, Mode.JSON_SCHEMA], ids=lambda mode: mode.value)
def test_partial(patched, mode):
    pieces = patched(mode).chat.completions.create_partial(model=MODEL, messages=MODES[mode], response_model=Person)
    assert list(pieces)[-1].model_dump() == PERSON.model_dump()


def test_iterable(patched):
    people = patched(Mode.TOOLS).chat.completions.create_iterable(model=MODEL, messages=ADA, response_model=Person)
    assert [each.model_dump() for each in people] == [PERSON.model_dump()]


def test_parallel_tools(patched):
    people = patched(Mode.PARALLEL_TOOLS).chat.completions.create(
        model=MODEL, messages=ADA, response_model=Iterable[Person]
    )
    assert [each.model_dump() for each in people] == [PERSON.model_dump()]


def test_responses(patched):
    person = patched(Mode.RESPONSES_TOOLS).responses.create(model=MODEL, input="Who is Ada?", response_model=Person)
    assert person.model_dump() == PERSON.model_dump()


@pytest.mark.parametrize("mode", [Mode.ANTHROPIC_TOOLS, Mode.ANTHROPIC_JSON], ids=lambda mode: mode.value)
def test_anthropic(server, mode):
    client = instructor.from_anthropic(anthropic.Anthropic(base_url=server, api_key="none"), mode=mode)
    messages = ADA if mode is Mode.ANTHROPIC_TOOLS else SAID
    person = client.messages.create(
        model=MODEL, messages=messages, response_model=Person, max_tokens=100, max_retries=0
    )
    assert person.model_dump() == PERSON.model_dump()


def test_too_long(patched):
    with pytest.raises(Exception, match="maximum context length"):
        patched(Mode.TOOLS).chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": TOO_LONG}], response_model=Person, max_retries=0
        )
