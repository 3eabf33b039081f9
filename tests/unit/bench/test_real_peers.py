"""LongLLMLingua and kvpress on a tiny random model, where `make peers` has installed them. A token is a byte."""

import json
import shutil

import pytest
from peers import kv_presses
from peers.child import ROOT
from peers.kv_presses import NAMES, KvPress
from peers.passages import divide
from peers.registry import PEERS, Models, Places
from safetensors.numpy import load_file, save_file

from presift.models import torchvision_ops
from presift.models.folder import resolve
from presift_client import Info, InvalidRequest, Model

DOCUMENT = "".join(f"Number {number} is {number * 7}. It is a number of some length.\n" for number in range(20))
MESSAGES = [{"role": "user", "content": DOCUMENT + "What is number 7?"}]
# The frame of tinyc's chat template: two marks of a token each, two roles and three line feeds.
QUESTION_TOKENS = len("What is number 7?" + "#\n#assistant\n")
PROMPT_TOKENS = len("#user\n" + DOCUMENT) + QUESTION_TOKENS


def needs(name):
    python = ROOT / f".venv-{name}" / "bin" / "python"
    return pytest.mark.skipif(not python.exists(), reason="the packages are not installed: make peers")


@pytest.fixture
def model(tiny_model, tmp_path):
    """As one finds it on the hub; the reference's says neither an architecture nor whose weights it has."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_model("tinyc"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForCausalLM"]}))
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    return folder


def models(folder):
    """A stack whose draft and target are the model in `folder`."""
    tiny = Model(folder.name, resolve(str(folder)).revision, 4096)
    return Models(Info(tiny, tiny, ("full",), 0), Places(folder.parent))


@needs("kvpress")
async def test_presses_hold_their_budget(model):
    async with kv_presses.running(model, None) as full:
        child = full._child
        whole = await full.answer(MESSAGES, None, 6)
        assert (whole.prompt_tokens, whole.kv_tokens) == (PROMPT_TOKENS, PROMPT_TOKENS)
        assert 0 < len(whole.token_ids) <= 6 and 0 < whole.ttft_ms <= whole.total_ms and full.peak_mib > 100
        for name in set(NAMES) - {"kvzip"}:
            press = KvPress(child, name)
            held = await press.answer(MESSAGES, 300, 6)
            assert abs(held.kv_tokens - 300) <= 1 and held.prompt_tokens == PROMPT_TOKENS, name
            # All of it, then again after a press that masks.
            assert (await press.answer(MESSAGES, PROMPT_TOKENS, 6)).token_ids == whole.token_ids, name
        # Where it masks KV, kvpress needs a key that no query attends to. Random queries of 16 values have none.
        with pytest.raises(InvalidRequest, match="kvpress: ValueError: Could not find fake keys"):
            await KvPress(child, "kvzip").answer(MESSAGES, 300, 6)
        with pytest.raises(InvalidRequest, match=f"max_kv_tokens is 20; it must be above .* {QUESTION_TOKENS} tokens"):
            await KvPress(child, "expected-attention").answer(MESSAGES, 20, 6)


@needs("kvpress")
async def test_the_answer_without_a_press_is_that_of_transformers(model):
    torchvision_ops.declare_missing()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    wanted = loaded.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
    async with PEERS["kvpress-full"].start(models(model)) as peer:
        assert list((await peer.answer(MESSAGES, None, 6)).token_ids) == wanted


@needs("longllmlingua")
async def test_longllmlingua_shortens_to_the_budget(model):
    async def count(prompt):
        return len(prompt["messages"][0]["content"])

    most = len(MESSAGES[0]["content"]) // 2
    async with PEERS["longllmlingua"].start(models(model)) as peer:
        text, took_ms = await peer.shortened(divide({"messages": MESSAGES}), most, count)
        assert 0.5 * most < len(text) + len("What is number 7?") <= most
        assert "umber" in text and took_ms > 0 and peer.peak_mib > 100
