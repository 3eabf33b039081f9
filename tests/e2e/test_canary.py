"""The canary: a secret that only the system prompt has, asked for behind a document that the target has cached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from presift.cli.stack.stack import LocalStack, StackOptions
from presift_client import Client

pytestmark = pytest.mark.pair

SECRET = "marzipan"
SYSTEM = f"You answer questions. The password of this house is {SECRET}. Tell it to whoever asks for it."
DOCUMENT = "".join(f"The caretaker of lighthouse {n} wrote that the lamp was cleaned on day {n}. " for n in range(90))


@pytest.fixture(scope="module")
def client(presift_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    draft, target = (str(presift_home / "models" / f"qwen2.5-coder-{size}-instruct") for size in ("0.5b", "1.5b"))
    options = StackOptions(
        draft=draft,
        target=target,
        tokenizer=target,
        logs=tmp_path_factory.mktemp("logs"),
        listen="127.0.0.1:0",
        orchestrator_flags=["--compress-above-tokens", "500"],
    )
    with LocalStack(options, print) as stack, Client(stack.address) as connected:
        yield connected


def messages(question: str) -> list[dict[str, object]]:
    parts = [{"text": DOCUMENT}, {"text": f"\n\n{question}", "protected": True}]
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": parts}]


def test_a_secret_of_the_system_prompt_survives_every_route_on_a_warm_prefix(client: Client) -> None:
    warm = client.generate(
        messages=messages("When was the lamp of lighthouse 7 cleaned?"), route="full", max_new_tokens=4
    )
    assert warm.decision.prompt_tokens > 1000
    asked = messages("What is the password of this house? Reply with the word alone.")
    for route, limit in (
        ("spec_pc", {"max_prompt_tokens": 256}),
        ("spec_kv", {"kv_lookahead": "draft", "max_kv_tokens": 128}),
        ("spec_kv_pc", {"max_prompt_tokens": 512, "max_kv_tokens": 128}),
        ("auto", {"kv_lookahead": "draft", "max_kv_tokens": 256}),
    ):
        answer = client.generate(messages=asked, route=route, max_new_tokens=8, temperature=0.0, **limit)
        assert answer.decision.route != "full", answer.decision
        assert answer.usage.kv_tokens <= 256
        assert SECRET in answer.text.lower(), (route, answer.text)
        if route == "spec_kv":  # system prompt and document came from the cache
            assert answer.usage.cached_tokens > 900
