"""The checks of a configuration, on a small random model. Each returns whether it holds, and its figures.

In bfloat16 two ways to compute the same round differently. So answers are compared by the log probabilities of their
likeliest tokens, up to the first position at which two tokens are so close that either may be chosen.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu import kv_reference
from real_engine import Answer, ask, idle, plan, prompts

from presift.core.kv_plan import KvPlan
from presift.target.sglang.engine import SglangEngine
from presift.target.sglang_plugin import self_check

CAPACITY, ANSWER = 256, 20
# Whole pages of 64, so that a page size drops nothing, and the final token.
_PAGE = 64
_LIKELY = 5
# Of log probabilities; the self-check's.
_TOLERANCE = {True: 1e-3, False: 0.3}
# How many of the answers must agree: one in ten may fall to the other side of several near ties at once.
_LEAST_AGREEING = 0.9
# How many answers must differ once KV is dropped. Otherwise equal answers would prove nothing.
_LEAST_DIFFERENT = 0.5
# Random choices would have CAPACITY / tokens in common; rounding exchanges a few pairs at the edge.
_LEAST_COMMON = {True: 0.99, False: 0.8}

Found = tuple[bool, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Bench:
    """A started engine and how much is asked of it. On the CPU answers are in float32."""

    engine: SglangEngine
    on_cpu: bool

    def prompts(self, count: int, pages: int, seed: int) -> list[np.ndarray]:
        """`count` prompts of `pages` pages and one token; each of the others has a page more than the one before."""
        vocabulary = self.engine.info.model.vocabulary_size
        longest = prompts(count, (pages + count) * _PAGE, vocabulary, seed)
        return [text[: (pages + place) * _PAGE + 1] for place, text in enumerate(longest)]

    @property
    def folder(self) -> Path:
        """The model's."""
        return self.engine._options.folder.path

    async def ask(self, prompt: np.ndarray, kv_plan: KvPlan | None = None, salt: str = "", **sampling: Any) -> Answer:
        return await ask(self.engine, prompt, ANSWER, kv_plan, salt, top_logprobs=_LIKELY, **sampling)

    def agree(self, one: Answer, other: Answer) -> bool:
        return self_check.agree(_likely(one), _likely(other), _TOLERANCE[self.on_cpu])

    def agreeing(self, some: Sequence[Answer], others: Sequence[Answer]) -> float:
        """The share of pairs that agree."""
        return sum(self.agree(*pair) for pair in zip(some, others, strict=True)) / len(some)


async def run(engine: SglangEngine, on_cpu: bool, report: Any) -> None:
    """All checks; an error of one is its result. `report` is the process's."""
    bench = Bench(engine, on_cpu)
    report.result["engine"] = await _engine(engine)
    for name, check in CHECKS.items():
        started_s = time.monotonic()
        try:
            holds, figures = await check(bench)
        except Exception as error:
            traceback.print_exc()
            holds, figures = False, {"error": f"{type(error).__name__}: {error}"}
        report.add(name, holds, figures | {"seconds": round(time.monotonic() - started_s, 1)})
        await idle(engine)
        await engine.flush()


async def full_is_served(engine: SglangEngine) -> bool:
    """Whether an ordinary request is answered."""
    (text,) = prompts(1, 300, engine.info.model.vocabulary_size)
    return len((await ask(engine, text, 4)).tokens) == 4


async def _engine(engine: SglangEngine) -> dict[str, Any]:
    """What SGLang made of the options."""
    (state, *_) = await engine._manager.get_internal_state()
    names = ("attention_backend", "page_size", "kv_cache_dtype", "disable_overlap_schedule", "cuda_graph_config")
    return {"name": engine.info.name} | {name: str(state.get(name)) for name in names}


async def keep_all(bench: Bench) -> Found:
    """With all KV kept, answers are the ordinary ones: alone, and in batches of both kinds. Dropping changes them."""
    texts = bench.prompts(6 if bench.on_cpu else 16, 5, seed=0)
    plans = [plan(text.size - 1) for text in texts]
    ordinary = [await bench.ask(text, salt="ordinary") for text in texts]
    again = [await bench.ask(text, salt="ordinary") for text in texts]
    alone = [await bench.ask(text, each, "kept") for text, each in zip(texts, plans, strict=True)]
    mixed: list[Answer] = []
    for start in range(0, len(texts), 8):
        batch = list(enumerate(zip(texts, plans, strict=True)))[start : start + 8]
        mixed += await asyncio.gather(
            *(bench.ask(text, each if place % 2 else None, "mixed") for place, (text, each) in batch)
        )
    dropped = [await bench.ask(text, plan(CAPACITY), "dropped") for text in texts]
    others = {"ordinary again": again, "alone": alone, "mixed": mixed}
    figures = {name: round(bench.agreeing(ordinary, answers), 2) for name, answers in others.items()}
    differ = 1 - bench.agreeing(ordinary, dropped)
    held = all(answer.finished.kv_tokens == text.size for answer, text in zip(alone, texts, strict=True))
    gap = max(_gap(*pair) for pair in zip(ordinary, alone, strict=True))
    holds = min(figures.values()) >= _LEAST_AGREEING and differ >= _LEAST_DIFFERENT and held
    return holds, {**figures, "differ if dropped": round(differ, 2), "all held": held, "largest gap": round(gap, 4)}


async def selection(bench: Bench) -> Found:
    """The kept pairs are those that transformers and numpy select, in every layer and head."""
    shares = []
    for text in bench.prompts(2, 12, seed=1):
        chosen = plan(CAPACITY, report_kept=True)
        kept = _kept(await bench.ask(text, chosen))
        expected = await asyncio.to_thread(kv_reference.selected, bench.folder, text, chosen)
        shares.append(np.count_nonzero(kept & expected, axis=2) / CAPACITY)
    found = np.concatenate(shares)
    figures = {"least common": round(float(found.min()), 3), "mean": round(float(found.mean()), 3)}
    return figures["least common"] >= _LEAST_COMMON[bench.on_cpu], figures


async def dropping(bench: Bench) -> Found:
    """Answers on the kept pairs are those of transformers if it sees no others: the pairs are copied whole, and
    positions count dropped tokens too, in decode steps that CUDA graphs replay. If it sees all, it answers otherwise.
    """
    texts = bench.prompts(3, 8, seed=2)
    answers = await asyncio.gather(*(bench.ask(text, plan(CAPACITY, report_kept=True)) for text in texts))
    gaps, gaps_to_all = [], []
    for text, answer in zip(texts, answers, strict=True):
        given = (kv_reference.logprobs, bench.folder, text, answer.tokens)
        gaps += _gaps(answer, await asyncio.to_thread(*given, _kept(answer)))
        gaps_to_all += _gaps(answer, await asyncio.to_thread(*given))
    within = float(np.mean(np.array(gaps) <= _TOLERANCE[bench.on_cpu]))
    figures = {"places within tolerance": round(within, 3), "largest gap": round(max(gaps), 4)}
    figures |= {"median gap": round(float(np.median(gaps)), 4), "to all KV": round(float(np.median(gaps_to_all)), 4)}
    return within >= _LEAST_AGREEING and figures["to all KV"] > 3 * figures["median gap"], figures


async def reuse(bench: Bench) -> Found:
    """The same request finds its entry, also when several ask at once."""
    first_text, second_text = bench.prompts(2, 30, seed=3)
    first, second = [await bench.ask(first_text, plan(CAPACITY)) for _ in range(2)]
    several = await asyncio.gather(*(bench.ask(second_text, plan(CAPACITY)) for _ in range(4)))
    figures = {
        "agree": bench.agree(first, second) and bench.agreeing(several, [several[0]] * 4) == 1,
        "reused": [first.finished.reused_entry, second.finished.reused_entry],
        "cached": second.finished.cached_tokens,
        "kv_tokens": second.finished.kv_tokens,
        "score_ms": round(first.finished.score_ms, 1),
        "publish_ms": round(first.finished.publish_ms, 1),
    }
    found = figures["reused"] == [False, True] and figures["cached"] == CAPACITY
    return found and figures["kv_tokens"] == CAPACITY + 1 and figures["agree"], figures


async def renewal(bench: Bench) -> Found:
    """Renewals that keep all KV change nothing, in a batch. Those that drop KV are made, and made alike again."""
    texts = bench.prompts(4 if bench.on_cpu else 10, 6, seed=4)
    ordinary = [await bench.ask(text, salt="ordinary") for text in texts]
    renewed = await asyncio.gather(*(bench.ask(text, _renewing(text.size - 1), "kept") for text in texts))
    # One by one: among others it depends on the batch at which token a renewal takes effect.
    both = [[await bench.ask(text, _renewing(CAPACITY), "dropped") for text in texts] for _ in range(2)]
    ends = [answer.finished for answer in (*renewed, *both[0], *both[1])]
    figures = {
        "agreeing": bench.agreeing(ordinary, renewed),
        "again": bench.agreeing(*both),
        "renewals": [end.renewals for end in ends],
        "skipped": sum(end.renewals_skipped for end in ends),
        "kv_tokens": sorted({end.kv_tokens for end in ends[len(texts) :]}),
    }
    agree = min(figures["agreeing"], figures["again"]) >= _LEAST_AGREEING
    made = min(figures["renewals"]) > 0 and figures["skipped"] == 0
    return agree and made and figures["kv_tokens"] == [CAPACITY + 1], figures


async def ledger(bench: Bench) -> Found:
    """An entry is all that is left of a request; nothing is left of it, or of aborted ones, after a flush."""
    before = (await idle(bench.engine))["free_slots"]
    texts = bench.prompts(12 if bench.on_cpu else 40, 6, seed=5)
    started_s = time.monotonic()
    await bench.ask(texts[0], plan(CAPACITY))
    after_one = (await idle(bench.engine))["free_slots"]
    dice = np.random.default_rng(0)
    delays = dice.uniform(0.0, 4.0, len(texts)) * (time.monotonic() - started_s)
    kinds = (plan(CAPACITY), plan(CAPACITY, keep_full_prefix=True), _renewing(CAPACITY), None)
    ended = await asyncio.gather(
        *(_is_aborted(bench, text, kinds[place % 4], delays[place]) for place, text in enumerate(texts))
    )
    state = await idle(bench.engine)
    balanced = state["free_slots"] + state["evictable_slots"] == before and not state["locked_slots"]
    flushed = await bench.engine.flush()
    after_all = (await idle(bench.engine))["free_slots"]
    figures = {
        "before": before,
        "after_one": after_one,
        "after_aborts": after_all,
        "aborted": sum(ended),
        "of": len(ended),
        "balanced": balanced,
        "ranks_agree": state["ranks_agree"],
    }
    holds = balanced and flushed and state["ranks_agree"] and after_one == before - CAPACITY and any(ended)
    return holds and after_all == before, figures


async def sampling(bench: Bench) -> Found:
    """Sampled answers with a seed come again, and with all KV kept too; without one they differ."""
    texts, hot = bench.prompts(4, 5, seed=6), {"temperature": 1.0}
    for text in texts:
        await bench.ask(text)
    first, again = [[await bench.ask(text, seed=7, **hot) for text in texts] for _ in range(2)]
    kept = [await bench.ask(text, plan(text.size - 1), seed=7, **hot) for text in texts]
    without = await asyncio.gather(*(bench.ask(texts[0], plan(CAPACITY), **hot) for _ in range(4)))
    figures = {
        "same again": _same(first, again),
        # By rounding a draw falls to another token sooner than the likeliest token changes; by chance few are the same.
        "same first token with all kept": sum(a.tokens[0] == b.tokens[0] for a, b in zip(first, kept, strict=True)),
        "of": len(texts),
        "different without a seed": len({tuple(answer.tokens) for answer in without}),
    }
    same, kept_too = figures["same again"], figures["same first token with all kept"]
    return same >= len(texts) - 1 and kept_too >= len(texts) // 2 and figures["different without a seed"] > 1, figures


CHECKS: dict[str, Callable[[Bench], Awaitable[Found]]] = {
    "keep-all": keep_all,
    "selection": selection,
    "dropping": dropping,
    "reuse": reuse,
    "renewal": renewal,
    "ledger": ledger,
    "sampling": sampling,
}


def _renewing(capacity: int) -> KvPlan:
    return plan(capacity, keep_full_prefix=True, renew_every=6)


async def _is_aborted(bench: Bench, text: np.ndarray, kv_plan: KvPlan | None, delay_s: float) -> bool:
    """Whether the answer had not ended after `delay_s`."""
    with suppress(TimeoutError):
        await asyncio.wait_for(ask(bench.engine, text, 5 * ANSWER, kv_plan), delay_s)
        return False
    return True


def _likely(answer: Answer) -> self_check.Answer:
    tops = tuple({token: float(logprob) for token, logprob in each.top} for each in answer.logprobs)
    return self_check.Answer(tuple(answer.tokens), tops, None)


def _kept(answer: Answer) -> np.ndarray:
    """bool[layers, kv_heads, tokens - 1], without the final prompt token."""
    return answer.finished.kv_mask.kept[:, :, :-1]


def _gaps(answer: Answer, expected: np.ndarray) -> list[float]:
    """At each place, by how much the log probabilities of the likeliest tokens differ from those expected."""
    return [
        max(abs(logprob - float(expected[place, token])) for token, logprob in each.top)
        for place, each in enumerate(answer.logprobs)
    ]


def _gap(one: Answer, other: Answer) -> float:
    """The largest difference of log probabilities of tokens up to the first that is not the same."""
    largest = 0.0
    for a, b in zip(one.logprobs, other.logprobs, strict=True):
        mine, its = dict(a.top), dict(b.top)
        largest = max([largest, *(abs(mine[token] - its[token]) for token in mine.keys() & its.keys())])
        if a.token_id != b.token_id:
            break
    return largest


def _same(some: Sequence[Answer], others: Sequence[Answer]) -> int:
    return sum(one.tokens == other.tokens for one, other in zip(some, others, strict=True))
