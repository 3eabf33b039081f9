import argparse
import time
from contextlib import asynccontextmanager

import pytest
import renewal_quality
from renewal_methods import FULL
from renewal_quality import Bench, Rows, chosen, run

from presift.core.answer import AnswerDelta, Finished
from presift.core.generation import FinishReason

METHODS = ["draft24/512", "renew12/512"]


class Tokenizer:
    """One token for each character."""

    def apply_chat_template(self, chat, **_):
        return chat[0]["content"]

    def encode(self, text):
        return [ord(character) for character in text]

    def decode(self, tokens):
        return "".join(map(chr, tokens))


class Engine:
    """Answers every prompt with the end of it; records what was asked."""

    def __init__(self):
        self.asked = []

    async def generate(self, request):
        self.asked.append(request)
        tokens = request.token_ids.tolist()[-request.sampling.max_new_tokens :]
        yield AnswerDelta(tuple(tokens))
        policy = request.kv_plan and request.kv_plan.policy
        held = policy.capacity + 1 if policy else request.token_ids.size
        yield Finished(request.token_ids.size, 0, len(tokens), FinishReason.STOP, held)


@pytest.fixture
def engines(monkeypatch):
    """The engines that were started, by the folder of their model."""
    started = {}

    @asynccontextmanager
    async def running(folder, **_):
        yield started.setdefault(folder, Engine())

    monkeypatch.setattr(renewal_quality, "running", running)
    monkeypatch.setattr(renewal_quality, "resolve", lambda folder: folder)
    return started


def bench(path, *, minutes=1.0, limit=3, methods=METHODS):
    options = argparse.Namespace(
        target="target", draft="draft", methods=methods, tokens=[2000], kinds=renewal_quality.KINDS, limit=limit
    )
    rows = Rows(path / "rows.jsonl", ("question", "method"))
    lookaheads = Rows(path / "lookaheads.jsonl", ("question",))
    tokenizer = Tokenizer()
    until_s = time.monotonic() + 60 * minutes
    return Bench(options, tokenizer, chosen(options, tokenizer), lookaheads, rows, until_s)


async def test_every_question_is_answered_by_every_method(engines, tmp_path):
    assert await run(bench(tmp_path)) == 0
    rows = bench(tmp_path).answers.found
    assert {method for _, method in rows} == {FULL, *METHODS}
    assert len(rows) == 9
    plans = [request.kv_plan for request in engines["target"].asked if request.kv_plan]
    assert {len(plan.lookahead_token_ids) for plan in plans} == {0, 24}


async def test_a_document_is_read_before_the_methods_ask(engines, tmp_path):
    await run(bench(tmp_path, limit=2))
    first, second = engines["target"].asked[:2]
    assert first.kv_plan is None
    assert (first.sampling.max_new_tokens, second.sampling.max_new_tokens) == (1, renewal_quality.ANSWER_TOKENS)


async def test_what_holds_kv_is_averaged_over_the_answer(engines, tmp_path):
    await run(bench(tmp_path, limit=1))
    (renewed,) = (row for (_, method), row in bench(tmp_path).answers.found.items() if method == "renew12/512")
    first = 16 * renewed["prompt"] + (renewed["answer"] - 16) * 513
    assert renewed["mean_held"] == round(first / renewed["answer"])


async def test_a_rerun_asks_what_is_missing_alone(engines, tmp_path):
    await run(bench(tmp_path, limit=2))
    engines.clear()
    assert await run(bench(tmp_path, limit=2)) == 0
    assert engines == {}
    assert await run(bench(tmp_path, limit=2, methods=[*METHODS, "snap/256"])) == 0
    assert "draft" not in engines
    plans = [request.kv_plan for request in engines["target"].asked if request.kv_plan]
    assert [plan.policy.capacity for plan in plans] == [256, 256]


async def test_no_question_is_started_after_the_time(engines, tmp_path):
    assert await run(bench(tmp_path, minutes=0.0)) == 75
    assert not (tmp_path / "rows.jsonl").exists()
