"""The peer that asks SGLang's own server."""

import itertools
from types import SimpleNamespace

import pytest
from peers import plain_sglang
from peers.plain_sglang import PlainSglang

from presift_client import InternalError, InvalidRequest

from ...fake_sglang import EVENTS, TOKENS, FakeSglang

MESSAGES = [{"role": "user", "content": [{"text": "doc. ", "document": True}, {"text": "why?"}]}]


async def asked(fake):
    with fake.serving() as url:
        peer = PlainSglang(url)
        try:
            return await peer.answer(MESSAGES, None, 8)
        finally:
            await peer.close()


async def test_a_stream_becomes_an_answer(monkeypatch):
    # A clock that goes a second further each time it is read.
    seconds = itertools.count()
    monkeypatch.setattr(plain_sglang, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    fake = FakeSglang()
    answer = await asked(fake)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("It is 119.", TOKENS, "stop")
    assert (answer.prompt_tokens, answer.kv_tokens, answer.completion_tokens) == (40, 40, 3)
    assert (answer.ttft_ms, answer.total_ms) == (1000, 2000)
    (body,) = fake.bodies
    assert body["messages"] == [{"role": "user", "content": "doc. why?"}]
    assert (body["max_tokens"], body["temperature"], body["stream"]) == (8, 0.0, True)


@pytest.mark.parametrize(
    ("fake", "error", "words"),
    [
        (FakeSglang(status=400), InvalidRequest, "SGLang answered 400: too long"),
        (FakeSglang(status=500), InternalError, "SGLang answered 500"),
        (FakeSglang([{"error": {"message": "aborted"}}]), InternalError, "SGLang failed: .*aborted"),
        (FakeSglang(EVENTS[:3]), InternalError, "SGLang's stream ended before the answer did"),
        (FakeSglang([*EVENTS[:4], EVENTS[5]]), ValueError, "gives no output_ids"),
    ],
)
async def test_errors_say_what_is_wrong(fake, error, words):
    with pytest.raises(error, match=words):
        await asked(fake)


async def test_an_answer_that_was_cut_keeps_its_last_token():
    cut = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length", "matched_stop": None}]}
    answer = await asked(FakeSglang([*EVENTS[:3], cut, *EVENTS[4:]]))
    assert (answer.token_ids, answer.finish_reason) == ((*TOKENS, 2), "length")


async def test_the_first_prompt_is_not_measured():
    fake = FakeSglang()
    with fake.serving() as url:
        async with plain_sglang.asked(url) as peer:
            assert len(fake.bodies) == 1 and peer.peak_mib is None


async def test_an_address_without_a_server():
    with pytest.raises(ValueError, match=r"sglang-address is http://127.0.0.1:1, where no healthy SGLang answers"):
        async with plain_sglang.asked("http://127.0.0.1:1"):
            pass
