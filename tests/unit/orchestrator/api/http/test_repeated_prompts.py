"""What a response repeats of its prompts is estimated from above, and not by much."""

import tracemalloc

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from presift.core.answer import TokenLogprob
from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.answers import ReadPrompt
from presift.orchestrator.api.http.completions import View
from presift.orchestrator.api.http.repeated_prompts import MAX_REPEATED_BYTES, bytes_in_choice, check_repeated
from presift.orchestrator.api.http.reply import json_bytes
from presift.orchestrator.api.http.text_completions import TextCompletion
from presift.orchestrator.prompt.token_texts import TokenTexts

from .....contract.fakes.scripted_pipeline import decision, report

TOKENS, CHOICES = 1000, 8
LOGPROBS = {"echo": True, "logprobs": True, "prompt_logprobs": True}
# What is shown, how many alternatives, and the text of the prompt.
SHOWN = {
    "20 alternatives": (LOGPROBS, 20, "word" * TOKENS),
    "log probabilities": (LOGPROBS, 0, "word" * TOKENS),
    "token ids": ({"prompt_ids": True}, 0, ""),
    "long text": ({"echo": True}, 0, "\N{GRINNING FACE}" * 200 * TOKENS),
}


@pytest.fixture(scope="module")
def texts():
    backend = Tokenizer(models.BPE({f"\u0120token{number}": number for number in range(30_000)}, []))
    backend.decoder = decoders.ByteLevel()
    return TokenTexts(backend)


def read_prompt(text, tokens=TOKENS):
    return ReadPrompt(decision(tokens), np.arange(tokens, dtype=np.uint32) + 20_000, text)


@pytest.mark.parametrize(("shown", "top", "text"), SHOWN.values(), ids=SHOWN)
def test_the_estimate_is_the_memory(texts, shown, top, text):
    logprobs = tuple(
        TokenLogprob(20_000 + each, -float(each), tuple((each + other, -float(other)) for other in range(top)))
        for each in range(TOKENS)
    )
    view = View(choices=CHOICES, **shown)
    renderer = TextCompletion(view, texts)
    renderer.answers.prompts[0] = read_prompt(text)
    for choice in range(CHOICES):
        renderer.add(0, report(choice, prompt_logprobs=logprobs if choice == 0 and view.prompt_logprobs else ()))
    json_bytes(renderer.whole())
    tracemalloc.start()
    json_bytes(renderer.whole())
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    estimate = CHOICES * bytes_in_choice(view, renderer.answers.prompts[0], top)
    assert memory <= 1.05 * estimate <= 2 * memory, memory / estimate


# shown, choices, tokens of the prompt, alternatives, characters of its text
ORDINARY = [
    (LOGPROBS, 128, 600, 20, 2400),
    (LOGPROBS, 1, 131_072, 20, 600_000),
    (LOGPROBS, 1, 1_048_576, 20, 8_388_608),
    ({"prompt_ids": True}, 64, 32_000, 0, 0),
    ({"prompt_ids": True, "echo": True}, 8, 65_536, 0, 262_144),
]


@pytest.mark.parametrize(("shown", "choices", "tokens", "top", "characters"), ORDINARY)
def test_ordinary_requests_are_below_the_limit(shown, choices, tokens, top, characters):
    view, prompt = View(choices=choices, **shown), read_prompt("a" * characters, tokens)
    check_repeated(view, bytes_in_choice(view, prompt, top), [prompt])


def test_the_refusal_tells_how_many_choices_fit():
    view, prompt = View(choices=128, **LOGPROBS), read_prompt("a" * 4000, 100_000)
    choice_bytes = bytes_in_choice(view, prompt, 20)
    with pytest.raises(InvalidRequest) as refused:
        check_repeated(view, choice_bytes, [prompt, ReadPrompt()])
    assert MAX_REPEATED_BYTES // choice_bytes == 0, "one choice is always allowed"
    assert (refused.value.field, refused.value.value) == ("choices", 128)
    assert refused.value.limit == "at most 1: each shows 100000 tokens of the prompt (text, log probabilities)"
