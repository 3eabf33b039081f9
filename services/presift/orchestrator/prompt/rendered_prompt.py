"""A prompt as the tokenizer reads it: what of it may be dropped, what is protected, and which control tokens it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import Chat
from presift.orchestrator.prompt.chat_frame import ChatFrame, Range, find_texts
from presift.orchestrator.prompt.chat_renderer import RenderedChat
from presift.orchestrator.prompt.control_tokens import ControlTokens, TemplateTokens
from presift.orchestrator.prompt.protection import droppable_ranges, protected_ranges
from presift.orchestrator.prompt.rendered_tools import check_tools


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """The text of a prompt, its droppable characters, the protected texts with what they are, and warnings on its
    messages. `template_tokens`: its control tokens, where others in it are text."""

    text: str
    droppable: tuple[Range, ...]
    protected: tuple[tuple[str, Range], ...] = ()
    template_tokens: TemplateTokens | None = None
    warnings: tuple[str, ...] = ()


def read_chat(rendered: RenderedChat, control: ControlTokens | None) -> RenderedPrompt:
    """Raises InvalidRequest for tools that the template does not support, for messages that it leaves out, and for
    control tokens that it reads."""
    calls_left_out = check_tools(rendered)
    frame = find_texts(rendered)
    _check_left_out(rendered.chat, frame)
    return RenderedPrompt(
        rendered.text,
        droppable_ranges(rendered.chat, frame),
        protected_ranges(rendered.chat, frame),
        None if control is None else control.by_template(rendered),
        _warnings(rendered.chat, frame, calls_left_out),
    )


def _check_left_out(chat: Chat, frame: ChatFrame) -> None:
    """Raises InvalidRequest for a message that the template leaves out, except for an answer: of that, templates may
    leave out the text, for example beside tool calls."""
    lost = [at for at in frame.left_out if chat.messages[at].role != "assistant"]
    if lost:
        message = chat.messages[lost[0]]
        way = "it out, or a part of it: send one text" if len(message.parts) > 1 else "it out"
        value, limit = f"role {message.role}", f"a message that the chat template shows: it leaves {way}"
        raise InvalidRequest(f"prompt.chat.messages[{lost[0]}]", value, limit)


def _warnings(chat: Chat, frame: ChatFrame, calls_left_out: Sequence[int]) -> tuple[str, ...]:
    """What the template did with messages that the caller may not expect."""
    messages = len(chat.messages)
    rewritten = [at for at in frame.rewritten if at >= messages or chat.messages[at].role != "system"]
    warnings = []
    if rewritten:
        warnings.append(f"the chat template rewrites {_listed(rewritten, messages)}: nothing of that is dropped")
    if frame.left_out:
        warnings.append(f"the chat template leaves out the text of {_listed(frame.left_out, messages)}")
    if calls_left_out:
        warnings.append(f"the chat template leaves out tool calls of {_listed(calls_left_out, messages)}")
    return tuple(warnings)


def _listed(places: Sequence[int], messages: int, most: int = 8) -> str:
    """The first `most` of `places` as the caller's fields: those beyond the number of `messages` are tools."""
    more = f" and {len(places) - most} more" if len(places) > most else ""
    names = (f"messages[{at}]" if at < messages else f"tools[{at - messages}]" for at in places[:most])
    return ", ".join(names) + more
