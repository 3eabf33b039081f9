"""The test pair of cross_vocabulary: SmolLM2's tokenizer reads what Qwen's wrote. No model is run."""

import unicodedata

import numpy as np
import pytest

from presift.core.remapping import remapped
from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.loader import load_bridge, load_tokenizer
from presift_demo_models.fetch import ensure_model

pytestmark = [pytest.mark.models, pytest.mark.pair]

CHAT = Chat(
    (
        Message("system", (TextPart("Be brief."),)),
        Message(
            "user",
            (
                TextPart("The code is 4711. 日本語 😀👍🏽 e\u0301 \u05e9\u05dc\n\n" * 40, document=True),
                TextPart("Code?"),
            ),
        ),
        Message("assistant", (TextPart("4711."),)),
        Message("user", (TextPart("Sure?"),)),
    ),
    ('{"type": "function", "function": {"name": "t", "parameters": {}}}',),
)


@pytest.fixture(scope="module")
def target(presift_home):
    return load_tokenizer(str(ensure_model("qwen2.5-coder-0.5b-instruct", presift_home, print)), 0)


@pytest.fixture(scope="module")
def draft_folder(presift_home):
    return str(ensure_model("smollm2-135m-instruct", presift_home, print))


async def test_smollm2_reads_what_qwen_reads(target, draft_folder):
    tokens = await target.tokenize(CHAT)
    reading = load_bridge(draft_folder, target).translate(tokens.ids)
    composed = unicodedata.normalize("NFC", target.render(CHAT))  # as Qwen's tokenizer reads it
    assert reading.draft_offsets.max() == reading.target_offsets.max() == len(composed) < len(target.render(CHAT))
    importance = np.random.default_rng(0).random(reading.ids.size, dtype=np.float32)
    carried = remapped(importance, reading.draft_offsets, reading.target_offsets)
    assert carried.size == tokens.ids.size and carried.sum() == pytest.approx(importance.sum(), rel=1e-5)


async def test_the_end_of_a_turn_is_said_in_qwens_tokens(target, draft_folder):
    bridge = load_bridge(draft_folder, target)
    reading = bridge.translate((await target.tokenize(CHAT)).ids)
    told = load_tokenizer(draft_folder, 0).backend.encode("It is 4711 日本.<|im_end|>").ids
    ids = bridge.translate_lookahead(reading, told, 24)
    assert target.backend.decode(list(ids), skip_special_tokens=False) == "It is 4711 日本.<|im_end|>"
    assert ids[-1] == target.backend.token_to_id("<|im_end|>")
