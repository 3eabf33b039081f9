"""The converted demo models against the reference vectors: token ids exactly, greedy continuations in float32.

Fixtures `reference_dir` (shared/reference) and `presift_home` (the model cache) come from tests/conftest.py.
"""

import json
import logging

import pytest

from presift_demo_models.fetch import ensure_model

pytestmark = pytest.mark.models

MODELS = {"smol135": "smollm2-135m-instruct", "qwen05": "qwen2.5-coder-0.5b-instruct"}
CASES = [f"{model}_ids_{number}" for model in MODELS for number in (0, 1)]
NEW_TOKENS = 16


@pytest.fixture(scope="module", params=["smol135", pytest.param("qwen05", marks=pytest.mark.pair)])
def reference_model(request):
    return request.param


@pytest.fixture
def folder(reference_model, presift_home):
    return ensure_model(MODELS[reference_model], presift_home, print)


@pytest.fixture
def cases(reference_model, reference_dir):
    """(prompt, token ids, continuation) of each prompt recorded for the model."""
    import numpy as np

    prompts = json.loads((reference_dir / "real_prompts.json").read_text(encoding="utf-8"))
    names = [name for name in CASES if name.startswith(reference_model)]
    with np.load(reference_dir / "real.npz") as ids:
        return [(prompts[name], ids[name].tolist(), prompts[f"{name}_greedy16"]) for name in names]


def test_files(folder):
    assert [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".gguf", ".pkl")] == []
    assert (folder / "model.safetensors").is_file()


def test_token_ids_are_exactly_the_recorded_ones(folder, cases):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompt, ids, _ in cases:
        assert tokenizer(prompt)["input_ids"] == ids
        assert tokenizer.decode(ids) == prompt


def test_the_chat_template_starts_the_recorded_prompts(folder, cases):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = cases[0][0]
    question = prompt.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    messages = [{"role": "user", "content": question}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == prompt


def test_greedy_continuations(folder, cases, caplog):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    assert not any(loading.values()), loading
    assert [record.getMessage() for record in caplog.records] == []
    for _, ids, continuation in cases:
        prompt = torch.tensor([ids])
        mask = torch.ones_like(prompt)
        output = model.generate(prompt, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
        assert tokenizer.decode(output[0, len(ids) :]) == continuation
