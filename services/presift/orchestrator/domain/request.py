"""What a caller asked for, as values. Built by the API codecs; knows neither gRPC nor HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from presift.core.answer import AnswerFormat
from presift.core.errors import InvalidRequest
from presift.core.generation import Sampling
from presift.core.limits import MAX_LOOKAHEAD_TOKENS
from presift.core.plan import Route
from presift.core.policies import KV_DROPPING_ROUTES, POLICIES, KvSelection
from presift.core.spans import Span
from presift.orchestrator.domain.caller import TenantLimits

# SGLang's own server has no limit; each choice is a request of its own to the target.
MAX_CHOICES = 128
ROLES = ("system", "user", "assistant", "tool")
_OF_ROLE = {"tool_calls_json": "assistant", "reasoning": "assistant", "name": "tool", "tool_call_id": "tool"}
TENANT_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of a message. A document may be dropped, unless it is protected."""

    text: str
    protected: bool = False
    document: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. An assistant may have called tools (one JSON object each) and may have reasoned before; a
    tool says by `name` and `tool_call_id` what it answers.

    Raises InvalidRequest for an unknown role, or for what its role does not have.
    """

    role: str
    parts: tuple[TextPart, ...]
    protected: bool = False
    tool_calls_json: tuple[str, ...] = ()
    name: str = ""
    tool_call_id: str = ""
    reasoning: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidRequest("prompt.chat.messages.role", repr(self.role[:32]), f"one of {', '.join(ROLES)}")
        for name, role in _OF_ROLE.items():
            if getattr(self, name) and self.role != role:
                raise InvalidRequest(
                    f"prompt.chat.messages.{name}", f"set on role {self.role}", f"unset unless the role is {role}"
                )

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, oldest message first; `tools_json` holds one JSON object per tool.

    `template_kwargs_json` is a JSON object of further variables for the chat template, empty for none. With
    `continue_final_message` the answer continues the last message, which is the assistant's. The parts of a message are
    joined as they are or, with `separate_parts`, as SGLang's server joins them. `document_tools`: the numbers of the
    tools whose descriptions may be dropped. Raises InvalidRequest.
    """

    messages: tuple[Message, ...]
    tools_json: tuple[str, ...] = ()
    template_kwargs_json: str = ""
    continue_final_message: bool = False
    separate_parts: bool = False
    document_tools: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not self.messages:
            raise InvalidRequest("prompt.chat.messages", "empty", "at least one message")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            value, limit = f"set on role {self.messages[-1].role}", "unset unless the last message is the assistant's"
            raise InvalidRequest("prompt.chat.continue_final_message", value, limit)

    @property
    def has_documents(self) -> bool:
        """Whether the caller marked what may be dropped; all else may not then."""
        parts = (part for message in self.messages for part in message.parts)
        return bool(self.document_tools) or any(part.document for part in parts)


@dataclass(frozen=True, slots=True)
class Text:
    """Read as it is: no chat template is applied."""

    text: str

    def __post_init__(self) -> None:
        if not self.text:
            raise InvalidRequest("prompt.text", "empty", "at least one character")


@dataclass(frozen=True, slots=True, eq=False)
class TokenIds:
    """Read as they are: uint32[tokens]. `protected` may name spans that no policy drops."""

    ids: NDArray[np.uint32]
    protected: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if self.ids.size == 0:
            raise InvalidRequest("prompt.token_ids", "empty", "at least one token")


Prompt = Chat | Text | TokenIds


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedPrompt:
    """A prompt as the target would read it: `ids` uint32[n]; `protected` spans in canonical form; no text.

    `salt` is the namespace of its tenant: nothing made from this prompt is found by requests with another salt.
    `warnings` say in words what the chat template did with messages that the caller may not expect. `protected_kinds`
    are what the protected tokens of a chat belong to, in words, with their number, the most first.
    """

    ids: NDArray[np.uint32]
    protected: tuple[Span, ...]
    salt: str = field(default="", repr=False)
    warnings: tuple[str, ...] = ()
    protected_kinds: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class AutoCapacity:
    """The smallest capacity that reaches `coverage`, 0..1, between bounds in tokens; None takes the default's.

    Raises InvalidRequest.
    """

    coverage: float
    min_tokens: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.coverage <= 1.0:
            raise InvalidRequest("budget.auto_capacity.coverage", self.coverage, "0 < coverage <= 1")
        for name in ("min_tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequest(f"budget.auto_capacity.{name}", value, ">= 1")
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                "budget.auto_capacity.min_tokens", self.min_tokens, f"<= max_tokens ({self.max_tokens})"
            )


@dataclass(frozen=True, slots=True)
class Budget:
    """The caller's limits in tokens and milliseconds, `min_coverage` 0..1; None takes the orchestrator's default.

    Raises InvalidRequest.
    """

    max_prompt_tokens: int | None = None
    max_kv_tokens: int | None = None
    strict: bool = False
    compress_above_tokens: int | None = None
    max_ttft_ms: int | None = None
    min_coverage: float | None = None
    auto_capacity: AutoCapacity | None = None

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_kv_tokens", "max_ttft_ms"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequest(f"budget.{name}", value, ">= 1")
        if self.min_coverage is not None and not 0.0 < self.min_coverage <= 1.0:
            raise InvalidRequest("budget.min_coverage", self.min_coverage, "0 < coverage <= 1")

    def auto(self, default: AutoCapacity | None) -> AutoCapacity | None:
        """How capacities adapt, None if they do not. A mask that covers less than `min_coverage` would not be taken."""
        asked = default if self.auto_capacity is None else self.auto_capacity
        if asked is None or self.min_coverage is None:
            return asked
        return replace(asked, coverage=max(asked.coverage, self.min_coverage))

    @property
    def has_limits(self) -> bool:
        """Whether the budget sets a limit that a route can exceed."""
        return self.capacity is not None or self.max_ttft_ms is not None

    @property
    def has_strict_kv_limit(self) -> bool:
        """Whether the prompt must never hold more KV than the limit while decoding."""
        return self.strict and self.max_kv_tokens is not None

    @property
    def capacity(self) -> int | None:
        """The tighter of the two limits: on routes full and spec_pc, each prompt token read holds one KV token."""
        if self.max_prompt_tokens is None or self.max_kv_tokens is None:
            return self.max_prompt_tokens or self.max_kv_tokens
        return min(self.max_prompt_tokens, self.max_kv_tokens)


class KvLookahead(StrEnum):
    """Who generates the tokens by which the target selects KV.

    DRAFT: the draft, before the answer begins. TARGET: the answer itself, whose first tokens are generated on the full
    KV; no draft is needed. AUTO: the target where no draft can do it or where the answer then begins sooner, else the
    draft.
    """

    DRAFT = "draft"
    TARGET = "target"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class KvOptions:
    """How KV is dropped on the routes that drop it; None means the orchestrator's default. Raises InvalidRequest, also
    for options that contradict each other.

    `continue_prompt_tokens` reuses the selection that was made for that many first tokens of the prompt.
    `first_full_tokens`, of the target's lookahead, asks for that lookahead. The target selects anew every `renew_every`
    generated tokens (0: never), or sooner after one that is rare in the prompt, by the newest `renew_window`.
    """

    selection: KvSelection | None = None
    keep_full_prefix: bool | None = None
    lookahead_tokens: int | None = None
    continue_prompt_tokens: int | None = None
    lookahead: KvLookahead | None = None
    renew_every: int | None = None
    renew_window: int | None = None
    first_full_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.lookahead_tokens is not None and not 0 <= self.lookahead_tokens <= MAX_LOOKAHEAD_TOKENS:
            raise InvalidRequest("kv.lookahead_tokens", self.lookahead_tokens, f"0..{MAX_LOOKAHEAD_TOKENS}")
        for name, least in (("renew_every", 0), ("renew_window", 1), ("first_full_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidRequest(f"kv.{name}", value, f">= {least}")
        if self.asks_target_lookahead:
            self._check_target_lookahead(self._asked)
        if self.keep_full_prefix is False and self.asks_renewal:
            raise InvalidRequest("kv.keep_full_prefix", "false", f"true or unset with {self._asked}")

    @property
    def asks_target_lookahead(self) -> bool:
        """Whether the caller asks for the target's lookahead."""
        return self.lookahead is KvLookahead.TARGET or self.first_full_tokens is not None

    @property
    def asks_renewal(self) -> bool:
        """Whether the caller asks to select KV while the answer is generated."""
        return self.asks_target_lookahead or bool(self.renew_every)

    @property
    def by_draft(self) -> KvOptions:
        """The same with the draft's lookahead where the caller leaves it open."""
        is_open = self.lookahead is None and not self.asks_target_lookahead
        return replace(self, lookahead=KvLookahead.DRAFT) if is_open else self

    @property
    def selecting_once(self) -> KvOptions:
        """The same with a selection before the answer begins, and none after it, where the caller leaves it open."""
        return self if self.asks_renewal else replace(self.by_draft, renew_every=0)

    @property
    def _asked(self) -> str:
        """The option by which the caller asks to select KV while the answer is generated, in the words of an error."""
        if self.lookahead is KvLookahead.TARGET:
            return f"kv.lookahead {self.lookahead}"
        name = "renew_every" if self.first_full_tokens is None else "first_full_tokens"
        return f"kv.{name} {getattr(self, name)}"

    def _check_target_lookahead(self, asked: str) -> None:
        if self.continue_prompt_tokens is not None:  # the selection of an earlier turn needs no lookahead
            raise InvalidRequest("kv.continue_prompt_tokens", self.continue_prompt_tokens, f"unset with {asked}")
        if self.lookahead is KvLookahead.DRAFT:
            limit = f"{KvLookahead.TARGET}, {KvLookahead.AUTO} or unset with {asked}"
            raise InvalidRequest("kv.lookahead", self.lookahead, limit)
        if self.selection is KvSelection.DRAFT_MASK:
            limit = f"{KvSelection.TARGET_LOOKAHEAD} or unset with {asked}"
            raise InvalidRequest("kv.selection", self.selection, limit)
        if self.lookahead_tokens:
            raise InvalidRequest("kv.lookahead_tokens", self.lookahead_tokens, f"0 or unset with {asked}")

    def check_budget(self, budget: Budget) -> None:
        """Raise InvalidRequest for a budget that only the draft's lookahead can keep, if the caller asks for the
        target's."""
        if not self.asks_target_lookahead:
            return
        if budget.has_strict_kv_limit:
            limit = f"unset or not strict with {self._asked}: the answer begins on the full KV"
            raise InvalidRequest("budget.max_kv_tokens", budget.max_kv_tokens, limit)
        for name in ("min_coverage", "auto_capacity"):
            value = getattr(budget, name)
            if value is not None:
                shown = value.coverage if isinstance(value, AutoCapacity) else value
                limit = f"unset with {self._asked}: only a draft estimates coverage"
                raise InvalidRequest(f"budget.{name}", shown, limit)

    def check_continues(self, prompt_tokens: int) -> None:
        """Raise InvalidRequest unless `continue_prompt_tokens` is shorter than the prompt and positive."""
        wanted = self.continue_prompt_tokens
        if wanted is not None and not 0 < wanted < prompt_tokens:
            raise InvalidRequest("kv.continue_prompt_tokens", wanted, f"0 < tokens < {prompt_tokens} (the prompt)")


@dataclass(frozen=True, slots=True)
class Request:
    """One call. `route` None is AUTO; `tenant` None has the general defaults. Only requests with the same `salt` share
    cache entries; `limits` are those of the tenant. `choices` answers are generated. `answer_format` is what is
    separated from the answer's text, None for nothing. `has_default_length`: the caller did not set
    `sampling.max_new_tokens`. `uncut_max_new_tokens` is that number before the context cut it, None if it was not cut.
    `migrate` lets another target continue an answer whose target is lost.

    Raises InvalidRequest for sampling values out of their range, and for KV options that the route cannot have.
    """

    prompt: Prompt
    route: Route | None = None
    budget: Budget = field(default_factory=Budget)
    sampling: Sampling = field(default_factory=Sampling)
    kv: KvOptions = field(default_factory=KvOptions)
    tenant: str | None = None
    salt: str = field(default="", repr=False)
    limits: TenantLimits = field(default_factory=TenantLimits)
    choices: int = 1
    answer_format: AnswerFormat | None = None
    has_default_length: bool = False
    uncut_max_new_tokens: int | None = None
    migrate: bool = False

    def __post_init__(self) -> None:
        self.sampling.check()
        if not 1 <= self.choices <= MAX_CHOICES:
            raise InvalidRequest("choices", self.choices, f"1..{MAX_CHOICES}")
        if self.kv.selection is KvSelection.DRAFT_MASK and self._compresses_first():
            limit = f"{KvSelection.TARGET_LOOKAHEAD} on route {self.route}"
            raise InvalidRequest("kv.selection", self.kv.selection, limit)
        if self.may_drop_kv:
            self.kv.check_budget(self.budget)
        if self.kv.continue_prompt_tokens is not None and self.route not in (None, Route.SPEC_KV):
            limit = f"unset unless the route is {Route.SPEC_KV} or auto"
            raise InvalidRequest("kv.continue_prompt_tokens", self.kv.continue_prompt_tokens, limit)

    @property
    def may_drop_kv(self) -> bool:
        """Whether KV options can take effect: the route drops KV, or AUTO may choose one that does."""
        return self.route is None or self.route in KV_DROPPING_ROUTES

    def _compresses_first(self) -> bool:
        """Whether the named route drops KV of a compressed prompt, which the draft's mask does not fit."""
        policy = None if self.route is None else POLICIES.get(self.route)
        return policy is not None and policy.drops_kv and not policy.reads_whole_prompt
