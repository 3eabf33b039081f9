"""What several folders of tests need."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A shared machine is slow at times; that is no failure.
hypothesis.settings.register_profile("presift", deadline=None)
# `make test-fast` takes this one.
hypothesis.settings.register_profile("fast", deadline=None, max_examples=25)
hypothesis.settings.load_profile("presift")

# Before torch is loaded, here and in the processes that tests start: threads that spin while they wait take the cores
# from one another.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# They run in an environment of their own: `make test-clients`.
collect_ignore = ["clients"]

_TESTS = Path(__file__).parent
# Files of tests that start services, node or other interpreters; `make test-fast` leaves them out.
_PROCESSES = {
    "test_activate",
    "test_adding_a_policy",
    "test_agent_sessions",
    "test_cli_eval_suites",
    "test_embedded",
    "test_examples",
    "test_foreign_python",
    "test_packaging",
    "test_peer_children",
    "test_plain_sglang",
    "test_process",
    "test_processes",
    "test_real_packages",
    "test_real_peers",
    "test_ruler",
    "test_typescript_client",
    "test_typescript_package",
    "test_workers",
}


# Files of tests/e2e that share what they start: SGLang engines, and a stack with a real model.
_SHARED = dict.fromkeys(
    (
        "test_answer_forms",
        "test_families",
        "test_keep_all",
        "test_ledger",
        "test_renewal",
        "test_renewal_ledger",
        "test_reuse",
        "test_selfcheck",
        "test_target_sglang",
        "test_vectors",
    ),
    "engines",
) | {
    "test_features": "openai",
    "test_same_as_sglang": "openai",
    "test_stack": "stack",
    "test_telemetry": "stack",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in _PROCESSES:
            item.add_marker(pytest.mark.processes)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers, a file's tests stay together, and so do those that share engines or a stack.

    Not by the mark xdist_group: xdist 3.8 writes it into `_nodeid`, which pytest 9.2 no longer reads."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Groups(config, log)


def _group(nodeid: str) -> str:
    path = Path(nodeid.partition("::")[0])
    return _SHARED.get(path.stem, str(path)) if path.parts[:2] == ("tests", "e2e") else str(path)


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Where the authors' vectors lie: the copy in the repository, else the one beside the checkout."""
    places = (_TESTS / "reference" / "data", _TESTS.parents[1] / "shared" / "reference")
    return next(place for place in places if (place / "README.md").exists())


@pytest.fixture(scope="session")
def presift_home() -> Path:
    """The model cache."""
    return Path(os.environ.get("PRESIFT_HOME", "~/.cache/presift")).expanduser()


@pytest.fixture(scope="session")
def tiny_model(reference_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """name -> a Hugging Face folder of the reference's tiny random model ("tinyq", "tinyl"), without a tokenizer.

    "tinyc" is tinyq with a tokenizer, whose tokens are bytes and a few marks, and Qwen2.5's format of tool calls.
    "tinym" is a Qwen3-MoE, not of the reference, without a tokenizer.
    """

    def folder(name: str) -> Path:
        path = tmp_path_factory.getbasetemp() / name
        if not path.exists():
            path.mkdir()
            if name == "tinym":
                _save_experts(path)
                return path
            weights = "tinyq" if name == "tinyc" else name
            shutil.copy(reference_dir / f"{weights}.config.json", path / "config.json")
            shutil.copy(reference_dir / f"{weights}.safetensors", path / "model.safetensors")
            if name == "tinyc":
                _add_tokenizer(path)
        return path

    return folder


def _save_experts(folder: Path) -> None:
    """A random Qwen3-MoE in float32, with two of eight experts a token.

    In every layer: SGLang would leave the weights of another kind of layer uninitialised (`mlp_only_layers`).
    """
    import numpy as np
    from safetensors.numpy import save_file

    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,  # of layers without experts
        "moe_intermediate_size": 48,  # no multiple of what SGLang's own CPU engine wants
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "vocab_size": 512,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    weights = {}

    def matrix(name: str, *shape: int) -> None:
        # Far from a fresh model's, whose attention is the same everywhere.
        weights[f"{name}.weight"] = random.normal(0, 0.2, shape).astype(np.float32)

    matrix("model.embed_tokens", 512, 64)
    matrix("lm_head", 512, 64)
    norms = {"model.norm": 64}
    for layer in (f"model.layers.{number}" for number in range(4)):
        norms |= {f"{layer}.input_layernorm": 64, f"{layer}.post_attention_layernorm": 64}
        norms |= {f"{layer}.self_attn.{name}_norm": 16 for name in "qk"}
        for name, rows in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
            matrix(f"{layer}.self_attn.{name}_proj", rows, 64)
        matrix(f"{layer}.mlp.gate", 8, 64)
        for expert in (f"{layer}.mlp.experts.{number}" for number in range(8)):
            matrix(f"{expert}.gate_proj", 48, 64)
            matrix(f"{expert}.up_proj", 48, 64)
            matrix(f"{expert}.down_proj", 64, 48)
    weights |= {f"{name}.weight": np.ones(width, np.float32) for name, width in norms.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _add_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={each: i for i, each in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_end|>", "<|im_start|>"])
    backend.add_tokens(["<tool_call>", "</tool_call>"])
    backend.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": len(alphabet)}
    (folder / "config.json").write_text(json.dumps(config))
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "{% for call in message.tool_calls %}<tool_call>\n"
        "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}\n</tool_call>{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def draft_stub() -> Iterator[Callable[[Path], Any]]:
    """folder -> a blocking DraftService stub of a real server over that model, float32, in this process."""
    import asyncio
    import threading

    import grpc

    from presift.draft.servicer import DraftServicer
    from presift.draft.transformers_scorer import TransformersScorer
    from presift.draft.work_queue import WorkQueue
    from presift.models.folder import resolve
    from presift.rpc.server.server import GrpcServer, ServerOptions
    from presift.v1 import draft_pb2_grpc

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="drafts", daemon=True).start()
    running = []

    async def serve(folder: Path) -> int:
        queue, server = WorkQueue(64), GrpcServer(ServerOptions("127.0.0.1:0"), [])
        running.append((queue, server))
        servicer = DraftServicer(queue, max_lookahead_tokens=32)
        draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server.grpc)
        # On the queue's own thread: torch keeps a pool of threads for each thread that calls it.
        servicer.use((await queue.run(lambda _: TransformersScorer(resolve(str(folder))))).result)
        return await server.start()

    async def stop() -> None:
        for queue, server in running:
            await server.grpc.stop(0)
            queue.close()

    @functools.cache
    def stub(folder: Path) -> Any:
        port = asyncio.run_coroutine_threadsafe(serve(folder), loop).result()
        return draft_pb2_grpc.DraftServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))

    yield stub
    asyncio.run_coroutine_threadsafe(stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
