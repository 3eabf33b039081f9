"""Loads the target's tokenizer and chat template with transformers, which knows where each model keeps them."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from presift.core.errors import InvalidRequest
from presift.orchestrator.prompt.tokenizer import ChatTemplate, PromptTokenizer
from presift.orchestrator.prompt.vocabulary_bridge import VocabularyBridge

# What a template may do to a chat or to tools that it was not written for: it takes their parts for what they are not.
_REFUSALS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def load_tokenizer(name: str | None, memory_tokens: int) -> PromptTokenizer:
    """The tokenizer of a Hugging Face folder or hub id; None accepts token ids alone. Never runs a model's own code.

    Raises InvalidRequest where there is none.
    """
    if name is None:
        return PromptTokenizer(None, None, memory_tokens)
    # Imported here: it takes seconds, and `--help` must not.
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    # Not AutoTokenizer: it reads the model class first, and with it torch.
    try:
        loaded = PreTrainedTokenizerFast.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:  # its text is a page of advice
        raise InvalidRequest("tokenizer", name, "a folder or hub id with a tokenizer.json") from error
    return PromptTokenizer(loaded.backend_tokenizer, _template(loaded), memory_tokens)


def load_bridge(draft_tokenizer: str | None, tokenizer: PromptTokenizer) -> VocabularyBridge | None:
    """Between `tokenizer` and that of a draft, a folder or hub id; None where both read the same token ids.

    Raises InvalidRequest, naming the setting, where one of them is missing.
    """
    for name, is_there in (
        ("draft_tokenizer", draft_tokenizer is not None),
        ("tokenizer", tokenizer.backend is not None),
    ):
        if not is_there:
            raise InvalidRequest(name, "unset", "a folder or hub id, with cross_vocabulary")
    drafts = load_tokenizer(draft_tokenizer, memory_tokens=0)
    if tokenizer.backend is None or drafts.backend is None or drafts.fingerprint() == tokenizer.fingerprint():
        return None
    return VocabularyBridge(tokenizer.backend, drafts.backend)


def _template(loaded: Any) -> ChatTemplate | None:
    if loaded.chat_template is None:
        return None

    def render(messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
        try:
            return str(loaded.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True))
        except _REFUSALS as error:  # its text may quote the prompt
            raise InvalidRequest("prompt.chat", "refused", "a chat that the target's template accepts") from error

    return render
