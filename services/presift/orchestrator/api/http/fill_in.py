"""Fill-in-the-middle: `suffix` of /v1/completions, written into the prompt with the tokenizer's FIM tokens."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from presift.core.errors import InvalidRequest
from presift.core.limits import MAX_PROMPT_CHARACTERS
from presift.core.plan import Route
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.schema import CompletionBody

# The tokens before the prompt, between prompt and suffix, and after the suffix: those of SGLang's completion templates
# (qwen_coder, star_coder, deepseek_coder), in the order that their models are trained on.
_FIM_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<\uff5cfim▁begin\uff5c>", "<\uff5cfim▁hole\uff5c>", "<\uff5cfim▁end\uff5c>"),
)


def with_suffix_in_prompt(body: CompletionBody, tokenizer: Tokenizer | None) -> CompletionBody:
    """The body with the suffix in its prompts. The route is then `full`: compression would drop text next to the gap.

    SGLang's server needs a completion template for this and ignores the suffix without one; here the tokenizer
    decides. Raises InvalidRequest if it has no such tokens.
    """
    if not body.suffix:
        return body
    if body.echo:
        raise InvalidRequest("suffix", brief(body.suffix), "left out with echo")
    if body.presift.route not in (None, Route.FULL):
        raise InvalidRequest("presift.route", body.presift.route, "full, auto or left out with a suffix")
    texts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("suffix", brief(body.suffix), "left out, unless the prompt is a text or a list of texts")
    _check_size(texts, body.suffix)
    before, between, after = _fim_tokens_of(tokenizer)
    prompts = [f"{before}{text}{between}{body.suffix}{after}" for text in texts]
    options = body.presift.model_copy(update={"route": Route.FULL})
    return body.model_copy(update={"prompt": prompts, "presift": options})


def _check_size(texts: list[Any], suffix: str) -> None:
    """The suffix is repeated in each prompt: together they may be no longer than one prompt may be."""
    characters = sum(map(len, texts)) + len(texts) * len(suffix)
    if characters > MAX_PROMPT_CHARACTERS:
        limit = f"at most {MAX_PROMPT_CHARACTERS} with all prompts, each with the suffix"
        raise InvalidRequest("suffix", f"{characters} characters", limit)


def _fim_tokens_of(tokenizer: Tokenizer | None) -> tuple[str, str, str]:
    for tokens in _FIM_TOKENS:
        if tokenizer is not None and all(tokenizer.token_to_id(token) is not None for token in tokens):
            return tokens
    raise InvalidRequest("suffix", "given", "left out: the target's tokenizer has no tokens for filling in")
