"""kvpress in an environment of its own (kvpress.lock): answers prompts with a part of their KV, a JSON line each.

    PYTHON kv_presses.py MODEL_FOLDER DTYPE

A request has `press` (a key of PRESSES, or null for all KV), `kv_tokens`, `max_new_tokens`, and `messages`, in which
`separator` stands between the document and the question. The answer is greedy, with the fields of PeerAnswer.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from json_lines import Request, serve
from kvpress import AdaKVPress, ExpectedAttentionPress, KVzipPress, SnapKVPress
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


@dataclass(frozen=True)
class Press:
    """How a press is made of a compression ratio. One that `knows_question` compresses the whole prompt, as its authors
    do; the others compress the document, and the question is read after it, as kvpress's pipeline does."""

    make: Callable[[float], Any]
    knows_question: bool


PRESSES = {
    "snapkv": Press(SnapKVPress, knows_question=True),
    "ada-snapkv": Press(lambda ratio: AdaKVPress(SnapKVPress(ratio)), knows_question=True),
    "expected-attention": Press(ExpectedAttentionPress, knows_question=False),
    "kvzip": Press(KVzipPress, knows_question=False),
}


class Engine:
    """A model on the processor, without batches."""

    def __init__(self, folder: str, dtype: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        ends = self._model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])

    @torch.inference_mode()
    def answer(self, request: Request) -> dict[str, Any]:
        """Raises ValueError for a budget that has no room for the question."""
        started = time.perf_counter()
        document, question = self._tokenized(request["messages"], request["separator"])
        prompt_tokens = len(document) + len(question)
        budget, press = request["kv_tokens"], PRESSES.get(request["press"])
        if press is None or budget is None or budget >= prompt_tokens:
            budget, press = prompt_tokens, None
        first, cache = self._read(document, question, budget, press)
        ttft_ms, held = (time.perf_counter() - started) * 1e3, self._held(cache)
        tokens = self._decode(first, cache, prompt_tokens, request["max_new_tokens"])
        is_ended = tokens[-1] in self._ends
        said = tokens[:-1] if is_ended else tokens
        return {
            "text": self._tokenizer.decode(said, skip_special_tokens=True),
            "token_ids": said,
            "prompt_tokens": prompt_tokens,
            "kv_tokens": held,
            "completion_tokens": len(tokens),
            "finish_reason": "stop" if is_ended else "length",
            "ttft_ms": ttft_ms,
            "total_ms": (time.perf_counter() - started) * 1e3,
        }

    def _tokenized(self, messages: list[dict[str, str]], separator: str) -> tuple[list[int], list[int]]:
        """The rendered prompt up to the question, and the rest."""
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        document, question = text.split(separator)
        return (
            self._tokenizer.encode(document, add_special_tokens=False),
            self._tokenizer.encode(question, add_special_tokens=False),
        )

    def _read(
        self, document: list[int], question: list[int], budget: int, press: Press | None
    ) -> tuple[int, DynamicCache]:
        """The first token of the answer, and the KV of the prompt that is left, `budget` tokens for each head."""
        if press is None or press.knows_question:
            compressed, rest = document + question, []
        else:
            compressed, rest = document, question
        room = budget - len(rest)
        if room < 1:
            raise ValueError(f"max_kv_tokens is {budget}; it must be above the question's {len(rest)} tokens")
        cache = DynamicCache()
        # Half a token more, so that rounding down gives `room`.
        ratio = 1 - (room + 0.5) / len(compressed)
        with contextlib.nullcontext() if press is None else press.make(ratio)(self._model):
            logits = self._forward(compressed, cache, 0)
        if rest:
            logits = self._forward(rest, cache, len(compressed))
        return int(logits.argmax()), cache

    def _held(self, cache: DynamicCache) -> int:
        """The KV tokens of a head, in the mean over heads and layers. What a press only masks is not held."""
        found = heads = 0
        for layer, kv in zip(self._model.model.layers, cache.layers, strict=True):
            masked = getattr(layer.self_attn, "masked_key_indices", None)
            found += kv.keys.shape[1] * kv.keys.shape[2] - (0 if masked is None else len(masked[0]))
            heads += kv.keys.shape[1]
        return round(found / heads)

    def _decode(self, first: int, cache: DynamicCache, position: int, most: int) -> list[int]:
        tokens = [first]
        while len(tokens) < most and tokens[-1] not in self._ends:
            tokens.append(int(self._forward(tokens[-1:], cache, position + len(tokens) - 1).argmax()))
        return tokens

    def _forward(self, tokens: list[int], cache: DynamicCache, position: int) -> torch.Tensor:
        """The logits after the last of the tokens, of which the first is at `position`."""
        positions = torch.arange(position, position + len(tokens))[None]
        found = self._model(
            input_ids=torch.tensor([tokens]), position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        return found.logits[0, -1]


def main() -> None:
    engine = Engine(*sys.argv[1:])
    serve(("kvpress", "transformers", "torch"), engine.answer)


if __name__ == "__main__":
    main()
