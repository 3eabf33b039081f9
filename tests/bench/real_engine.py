"""The real SGLang engine for benchmarks: models of random weights, prompts, and answers with the time of each token."""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from presift.core.answer import AnswerDelta, Finished, TokenLogprob
from presift.core.generation import Sampling
from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.models.folder import ModelFolder, resolve
from presift.target.engine import GenerateRequest
from presift.target.sglang.arguments import SglangOptions
from presift.target.sglang.engine import SglangEngine

LOOKAHEAD = 24


@dataclass(slots=True)
class Answer:
    """Tokens, when each came (seconds of `perf_counter`), their log probabilities if asked for, and how it ended."""

    started_s: float
    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None


@asynccontextmanager
async def running(folder: ModelFolder, **options: Any) -> AsyncIterator[SglangEngine]:
    """An engine, stopped at the end whatever happens. Raises RuntimeError if it does not serve spec_kv."""
    engine = SglangEngine(SglangOptions(folder, **options))
    try:
        await engine.start()
        if engine.info.unsupported:
            raise RuntimeError(f"routes are not served: {engine.info.unsupported}")
        yield engine
    finally:
        await engine.stop()


def random_folder(**sizes: float) -> tuple[tempfile.TemporaryDirectory[str], ModelFolder]:
    """A Qwen2 of these sizes with random weights and no tokenizer; the first is its keeper."""
    keeper = tempfile.TemporaryDirectory(prefix="presift-bench-")
    from presift.models import torchvision_ops

    torchvision_ops.declare_missing()
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(architectures=["Qwen2ForCausalLM"], bos_token_id=None, eos_token_id=None, **sizes)
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(keeper.name)
    return keeper, resolve(keeper.name)


def shaped_folder(**sizes: float) -> tuple[tempfile.TemporaryDirectory[str], ModelFolder]:
    """A Llama of these sizes without weights, for load_format "dummy"."""
    keeper = tempfile.TemporaryDirectory(prefix="presift-bench-")
    from presift.models import torchvision_ops

    torchvision_ops.declare_missing()
    from transformers import LlamaConfig

    config = LlamaConfig(architectures=["LlamaForCausalLM"], bos_token_id=None, eos_token_id=None, **sizes)
    config.save_pretrained(keeper.name)
    return keeper, ModelFolder(Path(keeper.name), "dummy", "none", "")


def prompts(count: int, tokens: int, vocabulary: int, seed: int = 0) -> list[np.ndarray]:
    """Distinct from the first token on, so that they share no prefix."""
    ids = np.random.default_rng(seed).integers(0, vocabulary, (count, tokens), dtype=np.uint32)
    ids[:, 0] = np.arange(count) + seed * count
    return list(ids % vocabulary)


def plan(
    capacity: int,
    *,
    window: int = 32,
    keep_full_prefix: bool = False,
    prompt_tokens: int = 0,
    report_kept: bool = False,
    **renewal: int,
) -> KvPlan:
    """SpecKV with a lookahead of the usual length; which tokens it holds does not matter here. `renewal`: the fields of
    SpecKv that say when KV is selected again."""
    policy = SpecKv(capacity=capacity, window=window, lookahead_tokens=LOOKAHEAD, **renewal)
    return KvPlan(
        policy,
        lookahead_token_ids=tuple(range(1, LOOKAHEAD + 1)),
        keep_full_prefix=keep_full_prefix,
        prompt_tokens=prompt_tokens,
        report_kept=report_kept,
    )


async def ask(
    engine: SglangEngine,
    prompt: np.ndarray,
    new_tokens: int,
    kv_plan: KvPlan | None = None,
    salt: str = "",
    **sampling: Any,
) -> Answer:
    """One answer of exactly `new_tokens`, greedy by default. Answers with different salts share no KV."""
    wanted = Sampling(max_new_tokens=new_tokens, ignore_eos=True, **sampling)
    answer = Answer(time.perf_counter())
    async for event in engine.generate(GenerateRequest(prompt, wanted, salt, kv_plan)):
        if isinstance(event, AnswerDelta):
            answer.tokens += event.token_ids
            answer.times_s += [time.perf_counter()] * len(event.token_ids)
            answer.logprobs += event.logprobs
        else:
            answer.finished = event
    return answer


async def idle(engine: SglangEngine) -> dict[str, Any]:
    """What the plugin counts once nothing runs any more."""
    while engine.running_requests:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    return await engine.plugin_state()


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = f"{names[0]} x {len(names)}" if names else platform.processor()
    return {"processor": processor, "load_average": round(os.getloadavg()[0], 1)}
