"""The whole stack as processes: real SmolLM2 as draft and target, real SGLang, real Valkey, real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from presift.cli.stack.stack import LocalStack
from presift.v1 import target_pb2, target_pb2_grpc
from presift_client import AsyncClient, Client, Generation, InvalidRequest

pytestmark = pytest.mark.models

CAPACITY = 64  # below the defaults of the stack: the guard samples none of these requests
BY_THE_DRAFT = {"route": "spec_kv", "kv_lookahead": "draft", "max_kv_tokens": CAPACITY}
SENTENCE = "The caretaker of lighthouse number {} wrote that the lamp was cleaned on day {} and the log was closed. "


def document(seed: int, sentences: int = 40) -> str:
    """About 28 tokens a sentence."""
    return "".join(SENTENCE.format(seed * 1000 + number, number) for number in range(sentences))


def messages(seed: int, sentences: int = 20) -> list[dict[str, object]]:
    parts = [{"text": document(seed, sentences)}, {"text": "When was the lamp cleaned?", "protected": True}]
    return [{"role": "user", "content": parts}]


@pytest.fixture
def stack(real_stack: Any) -> LocalStack:
    return real_stack.stack


@pytest.fixture
def client(stack: LocalStack) -> Iterator[Client]:
    with Client(stack.address) as connected:
        yield connected


def test_full_then_compressed_then_from_the_cache(client: Client) -> None:
    full, cold, cached = (
        client.generate(messages=messages(1, 40), route=route, max_prompt_tokens=CAPACITY, max_new_tokens=8)
        for route in ("full", "spec_pc", "auto")  # without a limit AUTO would find the whole prompt warm
    )
    assert (full.decision.route, full.decision.reason, full.decision.cache) == ("full", "requested", "not_used")
    assert full.decision.kept_tokens == full.decision.prompt_tokens == full.usage.kv_tokens > 900
    assert (cold.decision.route, cold.decision.cache, cold.usage.kv_tokens) == ("spec_pc", "miss", CAPACITY)
    assert (cached.decision.reason, cached.decision.cache, cached.decision.draft_ms) == ("over_budget", "hit", 0.0)
    assert 0 < cold.decision.coverage == cached.decision.coverage < 1
    assert cold.token_ids == cached.token_ids
    assert cached.usage.cached_tokens > 0
    assert [len(answer.token_ids) for answer in (full, cold, cached)] == [8, 8, 8]
    assert full.text and cold.text == cached.text


def test_below_the_threshold_nothing_is_dropped(client: Client) -> None:
    answer = client.generate(messages=[{"role": "user", "content": "Say hello."}], route="spec_pc", max_new_tokens=4)
    assert (answer.decision.route, answer.decision.reason) == ("full", "below_threshold")


def test_spec_kv_cold_again_and_for_the_next_question(client: Client) -> None:
    options = BY_THE_DRAFT | {"max_new_tokens": 6}
    cold, again = (client.generate(messages=messages(20, 40), **options) for _ in range(2))
    other = [{"text": document(20)}, {"text": "Who wrote the log?", "protected": True}]
    following = client.generate(messages=[{"role": "user", "content": other}], **options)
    prompt_tokens = cold.decision.prompt_tokens

    assert (cold.decision.route, cold.decision.reason, cold.decision.cache) == ("spec_kv", "requested", "miss")
    assert cold.decision.kept_tokens == prompt_tokens > 900
    assert cold.decision.kv_tokens == cold.usage.kv_tokens == CAPACITY
    # The target read the prompt while the draft worked: all was there but the rows that score (window 32, and one).
    assert cold.decision.prefill_ms > 0 < cold.decision.draft_ms
    assert (cold.usage.reused_entry, cold.usage.cached_tokens) == (False, prompt_tokens - 33)
    assert cold.usage.score_ms > 0 < cold.usage.publish_ms
    assert (again.decision.cache, again.decision.prefill_ms) == ("hit", 0.0)
    assert (again.usage.reused_entry, again.usage.cached_tokens) == (True, CAPACITY - 1)
    assert again.token_ids == cold.token_ids
    assert 0 < again.usage.coverage == cold.usage.coverage < 1
    assert following.usage.cached_tokens > 0.9 * prompt_tokens


def test_the_cascade_reads_less_and_holds_less(client: Client) -> None:
    options = BY_THE_DRAFT | {"route": "spec_kv_pc", "max_prompt_tokens": 400, "renew_every": 0, "max_new_tokens": 6}
    cold, again = (client.generate(messages=messages(21), **options) for _ in range(2))

    assert (cold.decision.route, cold.decision.kept_tokens) == ("spec_kv_pc", 400)
    assert cold.decision.kv_tokens == cold.usage.kv_tokens == CAPACITY
    assert cold.decision.keep_full_prefix is False
    assert (again.decision.cache, again.usage.reused_entry, again.token_ids) == ("hit", True, cold.token_ids)


def test_the_drafts_mask_is_applied_to_the_targets_kv(client: Client) -> None:
    options = {"route": "spec_kv", "kv_selection": "draft_mask", "max_kv_tokens": CAPACITY, "max_new_tokens": 6}
    answer = client.generate(messages=messages(22), keep_full_prefix=False, **options)

    assert (answer.decision.route, answer.decision.kv_selection) == ("spec_kv", "draft_mask")
    assert answer.usage.kv_tokens == CAPACITY
    assert (answer.usage.score_ms, answer.decision.prefill_ms) == (0.0, 0.0)
    assert 0 < answer.decision.coverage < 1


def test_a_later_turn_goes_on_with_the_selection_if_it_is_asked_to(client: Client) -> None:
    options = BY_THE_DRAFT | {"max_new_tokens": 6}
    first = client.generate(messages=messages(23), **options)
    turns = [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Are you sure?"}]
    before = first.decision.prompt_tokens
    options["max_kv_tokens"] = CAPACITY + 200
    later = client.generate(messages=[*messages(23), *turns], continue_prompt_tokens=before, **options)

    assert later.decision.continued
    assert (later.usage.reused_entry, later.decision.draft_ms) == (True, 0.0)
    assert later.usage.kv_tokens == CAPACITY + later.decision.prompt_tokens - before
    assert later.usage.cached_tokens >= CAPACITY


def test_stop_strings_and_seeds_work_where_kv_is_dropped(client: Client) -> None:
    options = BY_THE_DRAFT | {"max_new_tokens": 12}
    whole = client.generate(messages=messages(24), **options).text
    stop = whole.split()[1]
    stopped = client.generate(messages=messages(24), stop=[stop], **options)
    drawn = {client.generate(messages=messages(24), temperature=1.5, seed=seed, **options).text for seed in (1, 2)}

    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.usage.finish_reason == "stop"
    assert len(drawn) == 2


async def ask_at_once(stack: LocalStack, seeds: Iterable[int], **options: int) -> list[Generation]:
    async with AsyncClient(stack.address) as client:
        asking = [client.generate(messages=messages(seed), **options) for seed in seeds]
        return await asyncio.gather(*asking)


def test_64_identical_requests_cost_one_draft_pass(stack: LocalStack) -> None:
    answers = asyncio.run(ask_at_once(stack, [2] * 64, max_new_tokens=2, max_prompt_tokens=CAPACITY))
    outcomes = [answer.decision.cache for answer in answers]
    assert outcomes.count("miss") == 1
    assert set(outcomes) <= {"miss", "shared", "hit"}
    assert len({answer.token_ids for answer in answers}) == 1


def test_8_different_requests_are_answered_as_if_alone(stack: LocalStack, client: Client) -> None:
    # With a limit: here the draft is as slow as the target, and AUTO would read in full.
    options = {"max_new_tokens": 4, "max_prompt_tokens": CAPACITY}
    together = asyncio.run(ask_at_once(stack, range(10, 18), **options))
    assert [answer.decision.cache for answer in together] == ["miss"] * 8
    alone = [client.generate(messages=messages(seed), **options) for seed in range(10, 18)]
    assert [answer.decision.cache for answer in alone] == ["hit"] * 8
    # bf16 sums differ between batch sizes, so a near-tie may fall the other way: the masks must not.
    assert [a.decision.coverage for a in together] == [a.decision.coverage for a in alone]
    agreeing = sum(a.token_ids[0] == b.token_ids[0] for a, b in zip(together, alone, strict=True))
    assert agreeing >= 7


def running_requests(stack: LocalStack) -> int:
    address = next(service.address for service in stack.services if service.name == "target")
    with grpc.insecure_channel(address) as channel:
        stub = target_pb2_grpc.TargetServiceStub(channel)
        return stub.GetInfo(target_pb2.TargetServiceGetInfoRequest()).running_requests


def becomes(expected: int, stack: LocalStack, patience_s: float = 60) -> bool:
    until = time.monotonic() + patience_s
    while running_requests(stack) != expected and time.monotonic() < until:
        time.sleep(0.05)
    return running_requests(stack) == expected


def test_a_killed_client_frees_its_slot(stack: LocalStack) -> None:
    code = (
        "from presift_client import Client; import sys\n"
        "for event in Client(sys.argv[1]).stream('Once upon a time', max_new_tokens=4000, ignore_eos=True):\n"
        "    print(event, flush=True)\n"
    )
    command = [sys.executable, "-c", code, stack.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        for _ in range(3):
            assert process.stdout is not None and process.stdout.readline()
        assert becomes(1, stack)  # a comparison of the guard may run too
        process.send_signal(signal.SIGKILL)
    assert becomes(0, stack)


def test_bad_input_is_refused_and_the_services_stay_up(client: Client) -> None:
    for prompt, field in (({"token_ids": [10**9]}, "prompt.token_ids"), ({"prompt": ""}, "prompt.text")):
        with pytest.raises(InvalidRequest) as refusal:
            client.generate(**prompt)
        assert refusal.value.field == field
    with pytest.raises(InvalidRequest) as refusal:
        client.generate(prompt="hi", temperature=9.0)
    assert "temperature" in refusal.value.field
    assert client.generate(prompt="hi", max_new_tokens=1).token_ids


def test_the_command_answers_about_a_file(stack: LocalStack, tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(document(3, 20), encoding="utf-8")
    command = [sys.executable, "-c", "from presift.cli.entry import main; main()", "generate"]
    flags = [
        "--file",
        str(path),
        "--question",
        "When?",
        "--max-prompt-tokens",
        str(CAPACITY),
        "--max-new-tokens",
        "3",
        "--json",
    ]
    done = subprocess.run(
        [*command, *flags],
        env={**os.environ, "PRESIFT_ADDRESS": stack.address},
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["decision"]["route"] == "spec_pc"
    assert answer["usage"]["completion_tokens"] == 3


def test_the_example_runs(stack: LocalStack, tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(document(4), encoding="utf-8")
    example = Path(__file__).parents[2] / "clients" / "python" / "examples" / "ask_a_document.py"
    command = [sys.executable, str(example), str(path), "When was the lamp cleaned?", stack.address]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("spec_pc, kept 512 of ")
    assert "first token after" in done.stdout
