"""`suffix` of a text completion: the answer is what comes before it, as models of code are trained to fill in."""

from __future__ import annotations

from tokenizers import Tokenizer

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.schema import CompletionBody

# The tokens before the prompt, between prompt and suffix, and after the suffix: those of SGLang's completion templates
# (qwen_coder, star_coder, deepseek_coder), in the order that their models are trained on.
_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<\uff5cfim▁begin\uff5c>", "<\uff5cfim▁hole\uff5c>", "<\uff5cfim▁end\uff5c>"),
)


def with_suffix(body: CompletionBody, tokenizer: Tokenizer | None) -> CompletionBody:
    """The body with the suffix in its prompts; its route is then `full`, which drops nothing around the gap.

    SGLang's server uses a suffix only if it is started with a completion template, and otherwise drops it without a
    word. Here the tokenizer decides. Raises InvalidRequest if it has no such tokens.
    """
    if not body.suffix:
        return body
    marks = _marks_of(tokenizer)
    if body.echo:
        raise InvalidRequest("suffix", brief(body.suffix), "left out with echo")
    if body.presift.route not in (None, Route.FULL):
        raise InvalidRequest("presift.route", body.presift.route, "full, auto or left out with a suffix")
    texts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("suffix", brief(body.suffix), "left out, unless the prompt is a text or a list of texts")
    before, between, after = marks
    prompts = [f"{before}{text}{between}{body.suffix}{after}" for text in texts]
    options = body.presift.model_copy(update={"route": Route.FULL})
    return body.model_copy(update={"prompt": prompts, "presift": options})


def _marks_of(tokenizer: Tokenizer | None) -> tuple[str, str, str]:
    for marks in _MARKS:
        if tokenizer is not None and all(tokenizer.token_to_id(mark) is not None for mark in marks):
            return marks
    raise InvalidRequest("suffix", "given", "left out: the target's tokenizer has no tokens for filling in")
