"""How much text is tokenized at once."""

import asyncio
import threading

import pytest
from tokenizers import Tokenizer, models

from presift.core.errors import PromptTooLong
from presift.core.limits import MAX_PROMPT_CHARACTERS, MAX_PROMPT_TOKENS
from presift.orchestrator.prompt import tokenizing_limit as module
from presift.orchestrator.prompt.tokenizing_limit import (
    MAX_TEXT_BYTES,
    SHORT_BYTES,
    TokenizingLimit,
    byte_count,
    check_length,
    check_text_length,
)

MIB = 2**20


class Texts:
    """Texts that are being tokenized until `gate` opens."""

    def __init__(self):
        self.limit, self.gate = TokenizingLimit(), threading.Event()
        self.running = self.most = 0
        self.tasks = []

    def add(self, size):
        def encode():
            self.running += size
            self.most = max(self.most, self.running)
            self.gate.wait(10)
            self.running -= size

        self.tasks.append(asyncio.create_task(self.limit.run(encode, size)))
        return self.tasks[-1]

    async def started(self, size):
        for _ in range(200):
            await asyncio.sleep(0.005)
            if self.running >= size:
                break
        assert self.running == size

    async def end(self):
        self.gate.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.mark.parametrize("size", [SHORT_BYTES, MIB // 2, MIB, 3 * MIB])
async def test_texts_share_the_limit(size):
    texts = Texts()
    for _ in range(9):
        texts.add(size)
    await texts.started(max(size, MIB))
    await texts.end()
    assert texts.most == max(size, MIB) and all(task.done() for task in texts.tasks)


async def test_a_short_text_does_not_wait_for_a_long_one():
    texts = Texts()
    texts.add(8 * MIB)
    texts.add(8 * MIB)
    texts.add(1000)
    await texts.started(8 * MIB + 1000)
    await texts.end()


async def test_a_text_counts_until_its_thread_is_done_although_its_caller_left():
    texts = Texts()
    first = texts.add(MIB)
    await texts.started(MIB)
    first.cancel()
    texts.add(MIB)
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.sleep(0.05)
    assert texts.running == MIB
    await texts.end()
    assert texts.most == MIB


async def test_a_caller_who_leaves_while_waiting_does_not_stop_the_others():
    texts = Texts()
    texts.add(MIB)
    waiting = texts.add(MIB)
    texts.add(MIB)
    await texts.started(MIB)
    waiting.cancel()
    await texts.end()
    assert [task.cancelled() for task in texts.tasks] == [False, True, False] and texts.running == 0


def test_a_text_with_too_many_tokens_is_refused_before_all_are_in_memory(monkeypatch):
    backend = Tokenizer(models.BPE({"a": 0}, []))
    monkeypatch.setattr(module, "MAX_PROMPT_TOKENS", 200_000)
    check_length(backend, "a" * 200_000, 200_000)
    check_length(backend, "b" * 900_000, 900_000)  # no tokens
    seen = []
    counting = type("Counting", (), {"encode_batch": lambda _, texts, **options: seen.extend(texts) or [texts[0]]})()
    with pytest.raises(PromptTooLong, match="more than 200000 tokens"):
        check_length(counting, "a" * 8_000_000, 8_000_000)
    assert sum(map(len, seen)) < 300_000


def test_a_text_of_many_bytes_is_refused_although_its_tokens_are_few():
    backend = Tokenizer(models.BPE({"a": 0}, []))
    check_length(backend, "\u2500" * (MAX_TEXT_BYTES // 3), MAX_TEXT_BYTES)
    with pytest.raises(PromptTooLong, match=f"{MAX_TEXT_BYTES + 3} bytes of UTF-8"):
        check_length(backend, "\u2500" * (MAX_TEXT_BYTES // 3 + 1), MAX_TEXT_BYTES + 3)


def test_ids_of_a_text_of_many_bytes_are_refused_before_all_of_it_is_in_memory():
    backend, seen = Tokenizer(models.WordLevel({"a" * 4096: 0}, "?")), []
    check_text_length(backend, [0] * 2000)
    counting = type(
        "Counting",
        (),
        {"decode_batch": lambda _, ids, **options: seen.append(len(ids[0])) or backend.decode_batch(ids, **options)},
    )()
    with pytest.raises(PromptTooLong, match="tokens is text of more than"):
        check_text_length(counting, [0] * 1_000_000)
    assert sum(seen) < 20_000


def test_text_is_measured_in_bytes():
    assert [byte_count(text) for text in ("ab", "\u4e2d", "a\ud800")] == [2, 3, 4]
    assert MAX_PROMPT_TOKENS < MAX_PROMPT_CHARACTERS
