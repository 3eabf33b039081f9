"""A response repeats only so much of its prompts: `n` choices that show them are refused before they are generated."""

import openai
import pytest

from presift.orchestrator.api.http import repeated_prompts
from presift.orchestrator.pipeline.events import Delta

from ..fakes.scripted_pipeline import ScriptedHttpApi, decision, report

LOGPROBS = {"echo": True, "logprobs": 2}
IDS = {"extra_body": {"return_prompt_token_ids": True}}
# What is shown of 100 characters or of three tokens, and how many choices of that fit into 4,000 bytes.
SHOWN = {
    "text": ("a" * 100, {"echo": True}, 4),
    "log probabilities": ("abc", LOGPROBS, 1),
    "token ids": ("abc", IDS, 10),
}


@pytest.fixture(autouse=True)
def limited(monkeypatch):
    monkeypatch.setattr(repeated_prompts, "MAX_REPEATED_BYTES", 4000)


class HttpApi(ScriptedHttpApi):
    """`generated` counts the requests of which more than the decision was asked for."""

    def __init__(self, choices):
        self.generated = 0
        super().__init__(lambda _: self.answers(choices))

    def answers(self, choices):
        yield decision()
        self.generated += 1
        for choice in range(choices):
            yield Delta("x", (120,), choice=choice)
            yield report(choice, completion_tokens=1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("text", "shown", "fits"), SHOWN.values(), ids=SHOWN)
async def test_more_is_refused_before_anything_is_generated(text, shown, fits, stream):
    api = HttpApi(fits + 1)
    with pytest.raises(openai.BadRequestError) as refused:
        await api.text(text, n=fits + 1, stream=stream, **shown)
    error = refused.value.body
    assert (error["param"], error["code"]) == ("n", "invalid_value"), error
    assert error["presift"]["limit"].startswith(f"at most {fits}: each shows {len(text)} tokens of the prompt")
    assert api.generated == 0
    api = HttpApi(fits)
    await api.text(text, n=fits, stream=stream, **shown)
    assert api.generated == 1


@pytest.mark.parametrize("shown", [shown for _, shown, _ in SHOWN.values()], ids=SHOWN)
async def test_one_choice_is_never_refused(shown):
    answer = await HttpApi(1).text("a" * 5000, **shown)
    assert len(answer.choices) == 1


async def test_prompts_of_a_batch_count_together():
    with pytest.raises(openai.BadRequestError) as refused:
        await HttpApi(6).text(["abc", "abd"], n=6, **IDS)
    assert refused.value.body["param"] == "n"
    assert len((await HttpApi(5).text(["abc", "abd"], n=5, **IDS)).choices) == 10


async def test_a_chat_is_no_exception():
    with pytest.raises(openai.BadRequestError) as refused:
        await HttpApi(100).chat(n=100, messages=[{"role": "user", "content": "a" * 200}], **IDS)
    assert refused.value.body["param"] == "n"
