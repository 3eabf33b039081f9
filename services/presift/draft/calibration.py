"""Calibrates a draft: finds the attention heads that point at what a question asks for, and how few layers they need.

A draft reads a synthetic document and many questions about it, while every head's attention is recorded. Half of the
questions rank the heads: the worth of a head is its share of attention on the planted facts. Sets of heads below each
depth are then compared with the default policy on the other half, by the share of the answers' tokens that they keep.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from presift.core.errors import InvalidRequest
from presift.core.importance import window_weights
from presift.core.policies import Pool, SpecPc
from presift.core.selection import select
from presift.draft import calibration_prompts
from presift.draft.calibration_prompts import CalibrationDocument, CalibrationQuestion
from presift.draft.head_profile import HeadProfile
from presift.draft.layer_attention import LayerAttention
from presift.draft.layers import Layers
from presift.draft.scorer import Cancel, HeadReduction, ScoreTask
from presift.draft.transformers_scorer import TransformersScorer
from presift.models.folder import ModelFolder

# What the orchestrator sends by default to a draft without a profile.
DEFAULT_POLICY = SpecPc(capacity=32, window=32, pool=Pool.MEAN, kernel=7, neighbors=16, lookahead_tokens=8)
# Long enough that a head must find a fact among thousands of tokens. Questions share their document's KV, so that many
# of them cost little more than one.
_CHARACTERS, _QUESTIONS_PER_KIND, _DECOYS, _SEED = 20_000, 6, 4, 1
# For the KV of one document.
PREFIX_CACHE_BYTES = 2**33
# Recall is averaged over these shares of the prompt that are kept.
_KEPT_SHARES = (1 / 24, 1 / 12, 1 / 6)
_HEAD_COUNTS = (8, 16, 32)
# The cheapest set within this distance of the best recall is taken: that far apart, a few dozen prompts decide nothing.
_TOLERANCE = 0.01
# The first tokens draw attention whatever they are (arXiv 2309.17453).
_SINK_TOKENS = 4

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The best set of heads and its recall (0..1), and the default's on the same prompts.

    `profile` is None if no set of heads reaches the default's recall.
    """

    profile: HeadProfile | None
    recall: float
    default_recall: float


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """What one prompt showed: float32[layers, heads, n], summed over the window's rows, and their maximum; zero where a
    layer has no full attention.

    `facts`, `answers`: positions of tokens. `default`: float32[n], the default policy's importance.
    """

    summed: NDArray[np.float32]
    peaks: NDArray[np.float32]
    facts: list[int]
    answers: list[int]
    default: NDArray[np.float32]

    @property
    def tokens(self) -> int:
        return int(self.default.size)


@dataclass(frozen=True, slots=True)
class _HeadSet:
    """(layer, head) pairs, the best first, and how their rows become one number."""

    heads: tuple[tuple[int, int], ...]
    reduction: HeadReduction

    def importance(self, reading: _Reading) -> NDArray[np.float32]:
        layers, heads = map(list, zip(*self.heads, strict=True))
        recorded = reading.peaks if self.reduction is HeadReduction.MAX else reading.summed
        rows = recorded[layers, heads]
        reduced: NDArray[np.float32] = rows.sum(0) if self.reduction is HeadReduction.SUM else rows.max(0)
        return reduced

    @property
    def layers_read(self) -> int:
        return max(layer for layer, _ in self.heads) + 1


def calibrate(scorer: TransformersScorer, folder: ModelFolder, progress: Progress, cancel: Cancel) -> Calibration:
    """Read the synthetic prompts with `scorer`, which must have all layers, no profile, and a prefix cache.

    `progress` gets the number of questions that were read, and of all. Raises InvalidRequest if the model has no
    tokenizer or its context is too short, and what `scorer.score` raises.
    """
    tokenizer = _load_tokenizer(folder)
    document = calibration_prompts.make(_SEED, _CHARACTERS, _QUESTIONS_PER_KIND, _DECOYS)
    done = itertools.count(1)

    def read(question: CalibrationQuestion, *, with_default: bool) -> _Reading:
        reading = _read(scorer, tokenizer, document, question, cancel, with_default=with_default)
        progress(next(done), len(document.questions))
        return reading

    # The questions are in the order of their kinds, so that each kind has its part in both halves.
    worth = _mean_worth(read(each, with_default=False) for each in document.questions[::2])
    held_out = [read(each, with_default=True) for each in document.questions[1::2]]
    return _choose(worth, held_out, scorer.layers, folder)


def _choose(
    worth: NDArray[np.float64], held_out: Sequence[_Reading], layers: Layers, folder: ModelFolder
) -> Calibration:
    default_recall = _recall(held_out, lambda reading: reading.default)
    scored = [(each, _recall(held_out, each.importance)) for each in _head_sets(worth, layers.full)]
    best_recall = max(recall for _, recall in scored)
    if best_recall < default_recall:
        return Calibration(None, best_recall, default_recall)
    least = max(default_recall, best_recall - _TOLERANCE)
    chosen, recall = min(
        ((each, found) for each, found in scored if found >= least),
        # Of equally deep sets the one with most heads: it misses the fewest kinds of questions not asked here.
        key=lambda pair: (pair[0].layers_read, -len(pair[0].heads), -pair[1]),
    )
    profile = HeadProfile(
        model=folder.id,
        model_revision=folder.revision,
        layers=layers.count,
        heads_per_layer=worth.shape[1],
        heads=chosen.heads,
        reduction=chosen.reduction,
        recall=round(recall, 4),
        default_recall=round(default_recall, 4),
        created=datetime.now(UTC).date().isoformat(),
        presift_version=version("presift"),
    )
    return Calibration(profile, recall, default_recall)


def _head_sets(worth: NDArray[np.float64], full: Sequence[int]) -> Iterator[_HeadSet]:
    """For each depth from a quarter of the model on: its best heads, and all heads of its upper layers, if they are
    layers with full attention.

    Few heads are precise where their kind of question is asked. All heads of some layers miss the fewest kinds.
    """
    layers, heads = worth.shape
    order = [divmod(int(index), heads) for index in np.argsort(-worth, axis=None, kind="stable")]
    ranked = [(layer, head) for layer, head in order if layer in full]
    seen = set[tuple[tuple[int, int], ...]]()
    for depth in range(max(1, layers // 4), layers + 1):
        below = [(layer, head) for layer, head in ranked if layer < depth]
        sets = [below[:count] for count in _HEAD_COUNTS]
        sets += [sorted(pair for pair in below if pair[0] >= first) for first in (depth // 2, 2 * depth // 3)]
        # The best heads of a deeper part are often those of a shallower one.
        new = [each for each in map(tuple, sets) if each and each not in seen]
        seen.update(new)
        for each, reduction in itertools.product(new, HeadReduction):
            yield _HeadSet(each, reduction)


def _mean_worth(readings: Iterable[_Reading]) -> NDArray[np.float64]:
    """float64[layers, heads], 0..1: a head's share of attention on the planted facts, relative to that of the best head
    of the same prompt. So no kind of question counts more because it is easy.
    """
    window = DEFAULT_POLICY.window
    worths = []
    for reading in readings:
        total = reading.summed[:, :, _SINK_TOKENS:-window].sum(-1, dtype=np.float64)
        share = reading.summed[:, :, reading.facts].sum(-1, dtype=np.float64) / np.maximum(total, 1e-9)
        worths.append(share / share.max())
    mean: NDArray[np.float64] = np.mean(worths, axis=0)
    return mean


def _recall(readings: Iterable[_Reading], importance_of: Callable[[_Reading], NDArray[np.float32]]) -> float:
    """The mean share of the answers' tokens that a selection by this importance keeps."""
    found = []
    for reading in readings:
        importance = importance_of(reading)
        for share in _KEPT_SHARES:
            capacity = max(DEFAULT_POLICY.window + 1, round(reading.tokens * share))
            kept = select(importance, replace(DEFAULT_POLICY, capacity=capacity), (), importance).kept
            found.append(kept[reading.answers].mean())
    return float(np.mean(found))


def _read(
    scorer: TransformersScorer,
    tokenizer: Any,
    document: CalibrationDocument,
    question: CalibrationQuestion,
    cancel: Cancel,
    *,
    with_default: bool = True,
) -> _Reading:
    """Without `with_default` the default's importance is incomplete, and no lookahead is generated for it."""
    text = _rendered(tokenizer, document.text, question.text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = np.array(encoded["input_ids"], dtype=np.uint32), encoded["offset_mapping"]
    layers = scorer.layers
    if with_default:
        policy = replace(DEFAULT_POLICY, start_layer=min(layers.count // 2, layers.full[-1]))
    else:
        policy = replace(DEFAULT_POLICY, start_layer=layers.full[-1], lookahead_tokens=1)
    task, rows = ScoreTask(ids, policy), _HeadRows(ids.size, layers)
    if (needed := task.prompt_tokens + task.generated_tokens) > scorer.info.context_tokens:
        limit = f">= {needed} tokens, as long as the prompts of the calibration"
        raise InvalidRequest("model's context", scorer.info.context_tokens, limit)
    scored = scorer.score(task, cancel, rows)
    assert scored.importance is not None
    facts = [token for fact in question.facts for token in _tokens_of(fact, text.index(fact), offsets)]
    answers = [token for start, answer in _answers(question, text) for token in _tokens_of(answer, start, offsets)]
    return _Reading(rows.stacked(rows.summed), rows.stacked(rows.peaks), facts, answers, scored.importance)


def _answers(question: CalibrationQuestion, text: str) -> Iterator[tuple[int, str]]:
    """Each answer with its place in the text."""
    for answer in question.answers:
        fact = next(fact for fact in question.facts if answer in fact)
        yield text.index(fact) + fact.index(answer), answer


def _tokens_of(piece: str, start: int, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The tokens that overlap the characters of `piece`, which starts at `start`."""
    end = start + len(piece)
    return [token for token, (first, last) in enumerate(offsets) if last > start and first < end]


def _rendered(tokenizer: Any, document: str, question: str) -> str:
    if tokenizer.chat_template is None:
        return f"{document}\n\nQuestion: {question}\nAnswer:"
    chat = [{"role": "user", "content": f"{document}\n\n{question}"}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


def _load_tokenizer(folder: ModelFolder) -> Any:
    if not folder.has_tokenizer:
        raise InvalidRequest("model", folder.path, "a folder with tokenizer.json: the calibration reads text")
    from transformers import AutoTokenizer  # noqa: PLC0415

    return AutoTokenizer.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)


class _HeadRows:
    """Records what each head's rows of the window attend to. Rows of generated tokens are ignored."""

    def __init__(self, prompt_tokens: int, layers: Layers) -> None:
        self._n, self._layers = prompt_tokens, layers
        self._first_row = prompt_tokens - DEFAULT_POLICY.window
        self._weights = torch.from_numpy(window_weights(DEFAULT_POLICY.window, DEFAULT_POLICY.weighted_query))
        self.summed: dict[int, torch.Tensor] = {}
        self.peaks: dict[int, torch.Tensor] = {}

    def observe(self, layer: int, attention: LayerAttention) -> None:
        """See `Observer.observe`."""
        keys = attention.keys
        first = max(self._first_row, keys - attention.rows)
        if layer not in self._layers.full or first >= keys or keys > self._n:
            return
        for position, rows in attention.probabilities(first):
            start = position - self._first_row
            weighted = rows.mul_(self._weights[start : start + rows.shape[1], None].to(rows.device))
            self._add(self.summed, layer, weighted.sum(1), torch.add)
            self._add(self.peaks, layer, weighted.amax(1), torch.maximum)

    def _add(self, held: dict[int, torch.Tensor], layer: int, found: torch.Tensor, combine: Callable[..., Any]) -> None:
        """found: float32[heads, keys]."""
        grown = torch.nn.functional.pad(found, (0, self._n - found.shape[1]))
        held[layer] = combine(held[layer], grown) if layer in held else grown

    def stacked(self, held: dict[int, torch.Tensor]) -> NDArray[np.float32]:
        """float32[layers, heads, n]."""
        nothing = torch.zeros_like(next(iter(held.values())))
        rows = [held.get(layer, nothing) for layer in range(self._layers.count)]
        values: NDArray[np.float32] = torch.stack(rows).cpu().numpy()
        return values
