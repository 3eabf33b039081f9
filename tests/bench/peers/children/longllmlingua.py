"""LongLLMLingua in an environment of its own (longllmlingua.lock): shortens documents, a JSON line each.

    PYTHON longllmlingua.py MODEL_FOLDER

A request has `passages`, `question` and `target_tokens` (of the model's tokenizer); the answer has `text` and `ms`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from json_lines import Request, serve

# The call for LongLLMLingua that its authors document.
_OPTIONS = {
    "condition_in_question": "after_condition",
    "reorder_context": "sort",
    "dynamic_context_compression_ratio": 0.3,
    "condition_compare": True,
    "context_budget": "+100",
    "rank_method": "longllmlingua",
    "concate_question": False,
}


def main() -> None:
    import tiktoken
    from llmlingua import PromptCompressor
    from transformers import AutoTokenizer

    folder = sys.argv[1]
    # OpenAI's tokenizer, which only counts tokens for a report, would be downloaded.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tiktoken.encoding_for_model = lambda _: tokenizer
    compressor = PromptCompressor(folder, device_map="cpu", model_config={"trust_remote_code": False})

    def answer(request: Request) -> dict[str, Any]:
        started = time.perf_counter()
        found = compressor.compress_prompt(
            request["passages"], question=request["question"], target_token=request["target_tokens"], **_OPTIONS
        )
        # Without an instruction and with the question left out, the prompt is the document.
        return {"text": found["compressed_prompt"], "ms": (time.perf_counter() - started) * 1e3}

    serve(("llmlingua", "transformers", "torch"), answer)


if __name__ == "__main__":
    main()
