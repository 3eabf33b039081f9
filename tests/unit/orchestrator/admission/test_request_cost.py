"""The estimated cost of a request before tokenization."""

import numpy as np
import pytest

from presift.core.generation import Sampling
from presift.orchestrator.admission.request_cost import request_cost
from presift.orchestrator.domain.request import Chat, Message, Request, Text, TextPart, TokenIds

SAMPLING = Sampling(max_new_tokens=7)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        (TokenIds(np.arange(1000, dtype=np.uint32)), 1000),
        (Text("x" * 4000), 1000),
        (Text("\u4e2d" * 1000), 750),
        (Chat((Message("user", (TextPart("x" * 1600), TextPart("y" * 400))),), ("z" * 2000,)), 1000),
    ],
)
def test_tokens_to_read_and_to_generate(prompt, tokens):
    assert request_cost(Request(prompt, sampling=SAMPLING)).tokens == tokens + 7


def test_names_of_a_tools_answer_count_too():
    answers = Message("tool", (TextPart(""),), name="n" * 400, tool_call_id="i" * 1600)
    assert request_cost(Request(Chat((answers,)), sampling=SAMPLING)).tokens == 500 + 7


def test_every_choice_counts():
    assert request_cost(Request(Text("x" * 400), sampling=SAMPLING, choices=3)).tokens == 100 + 21


def test_reasoning_and_template_variables_count_too():
    answer = Message("assistant", (TextPart("a" * 400),), reasoning="r" * 1200)
    chat = Chat((answer,), template_kwargs_json='{"x": "%s"}' % ("y" * 391))
    assert request_cost(Request(chat, sampling=SAMPLING)).tokens == 500 + 7


def test_a_lone_surrogate_counts_too():
    assert request_cost(Request(Text("\ud800"))).tokens == 256


def test_memory_grows_with_the_prompt():
    small, large = (request_cost(Request(Text("x" * size))).held_bytes for size in (1, 1_000_000))
    assert small > 0 and large - small >= 5_000_000


def test_one_wide_character_widens_the_whole_text():
    narrow, wide = (request_cost(Request(Text("x" * 1_000_000 + last))) for last in ("x", "\U0001f600"))
    assert wide.held_bytes - narrow.held_bytes >= 9_000_000
