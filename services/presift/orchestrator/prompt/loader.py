"""Loads a model's tokenizer and chat template with transformers, which finds them in the model's files."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from jinja2 import TemplateError

from presift.core.errors import InvalidRequest
from presift.orchestrator.prompt.chat_renderer import ChatTemplate
from presift.orchestrator.prompt.template_variables import check_variables, template_variables
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.orchestrator.prompt.vocabulary_bridge import VocabularyBridge

# Errors of a template that does not expect such a chat or such tools, for example a wrong type of value.
_TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def load_tokenizer(name: str | None, memory_bytes: int) -> PromptTokenizer:
    """The tokenizer of a folder or Hugging Face id; None accepts only token ids. Never runs code from the model.

    `memory_bytes`: see PromptTokenizer. Raises InvalidRequest if there is no tokenizer.
    """
    if name is None:
        return PromptTokenizer(None, None, memory_bytes)
    # Imported here: the import takes seconds, which `--help` must not wait for.
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    # Not AutoTokenizer: it imports the model class, and with it torch.
    try:
        loaded = PreTrainedTokenizerFast.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:  # its own text is a page long
        raise InvalidRequest("tokenizer", name, "a folder or Hugging Face id with a tokenizer.json") from error
    variables = frozenset() if loaded.chat_template is None else template_variables(loaded)
    template = _template(loaded, variables)
    reads_parts = template is not None and _reads_parts(template)
    return PromptTokenizer(loaded.backend_tokenizer, template, memory_bytes, variables, reads_parts=reads_parts)


def load_bridge(draft_tokenizer: str | None, tokenizer: PromptTokenizer) -> VocabularyBridge | None:
    """The bridge from `tokenizer` to that of the draft (folder or Hugging Face id); None if both have the same ids.

    Raises InvalidRequest, which names the setting, if one of them is missing.
    """
    for name, is_set in (
        ("draft_tokenizer", draft_tokenizer is not None),
        ("tokenizer", tokenizer.backend is not None),
    ):
        if not is_set:
            raise InvalidRequest(name, "unset", "a folder or Hugging Face id, which cross_vocabulary needs")
    draft = load_tokenizer(draft_tokenizer, memory_bytes=0)
    if tokenizer.backend is None or draft.backend is None or draft.fingerprint() == tokenizer.fingerprint():
        return None
    return VocabularyBridge(tokenizer.backend, draft.backend)


def _template(loaded: Any, known: frozenset[str]) -> ChatTemplate | None:
    if loaded.chat_template is None:
        return None

    def render(
        messages: list[dict[str, Any]], tools: list[Any] | None, *, variables: dict[str, Any], continues: bool
    ) -> str:
        check_variables(variables, known)

        def rendered(tools: list[Any] | None) -> str:
            return str(
                loaded.apply_chat_template(
                    messages,
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=not continues,
                    continue_final_message=continues,
                    **variables,
                )
            )

        try:
            return rendered(tools)
        except _TEMPLATE_ERRORS as error:
            # As SGLang's server: some templates read definitions without OpenAI's wrapper.
            if tools and all("function" in tool for tool in tools):
                with suppress(*_TEMPLATE_ERRORS):
                    return rendered([tool["function"] for tool in tools])
            # The error's own text may contain parts of the prompt.
            raise InvalidRequest("prompt.chat", "refused", "a chat that the target's chat template accepts") from error

    return render


def _reads_parts(template: ChatTemplate) -> bool:
    """Whether the template reads a content that is a list of parts; others refuse it, or write it as it is."""
    parts = [{"type": "text", "text": text} for text in ("first part", "second part")]
    with suppress(InvalidRequest):
        rendered = template([{"role": "user", "content": parts}], None, variables={}, continues=False)
        return all(part["text"] in rendered for part in parts) and "'type'" not in rendered and '"type"' not in rendered
    return False
