"""The flags that several commands share, each written once; `with_flags` gives a command all flags of a group."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from presift.core.plan import Route

RouteName = Annotated[str, typer.Option(help=", ".join(("auto", *Route)))]
Tenant = Annotated[str | None, typer.Option(help="the tenant whose defaults of the policy file apply")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFlags:
    """What the target is to read: a plain text, or a question with documents."""

    prompt: Annotated[str | None, typer.Argument(help="plain text, used without a chat template; or --question")] = None
    question: Annotated[str | None, typer.Option(help="the user's message; the chat template is applied")] = None
    document: Annotated[
        list[Path] | None,
        typer.Option(
            "--document",
            "--file",
            help="a text file that the question is about and that may be compressed; repeatable; - reads stdin",
        ),
    ] = None
    system: Annotated[str | None, typer.Option(help="the system prompt, which is always kept")] = None
    tools: Annotated[
        Path | None,
        typer.Option(help="a file with a JSON list of tools that the model may call, which are always kept"),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLimitFlags:
    """The limits of a budget that are counts of tokens; None leaves a limit to the orchestrator's defaults."""

    max_prompt_tokens: Annotated[int | None, typer.Option(help="most prompt tokens that the target may read")] = None
    max_kv_tokens: Annotated[int | None, typer.Option(help="most KV tokens that the prompt may hold")] = None
    compress_above: Annotated[int | None, typer.Option(help="prompts of up to this many tokens are not compressed")] = (
        None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFlags(TokenLimitFlags):
    """The budget that a route can be predicted for."""

    max_ttft_ms: Annotated[int | None, typer.Option(help="longest predicted time to first token, ms")] = None
    auto_coverage: Annotated[
        float | None, typer.Option(help="keep the fewest tokens that reach this coverage, 0..1")
    ] = None
    strict: Annotated[bool, typer.Option("--strict", help="fail if the budget cannot be met")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFlags(BudgetFlags):
    """The whole budget, and how KV is selected on routes that drop KV."""

    min_coverage: Annotated[
        float | None,
        typer.Option(help="least coverage, as the draft estimates it, 0..1; below it a less lossy route is used"),
    ] = None
    kv_selection: Annotated[str | None, typer.Option(help="target_lookahead or draft_mask")] = None
    keep_full_prefix: Annotated[
        bool | None, typer.Option(help="keep the KV of the whole prompt in the target's cache")
    ] = None
    kv_lookahead_tokens: Annotated[
        int | None, typer.Option(help="tokens that the draft generates for the KV selection")
    ] = None
    kv_lookahead: Annotated[
        str | None,
        typer.Option(help="who makes the lookahead: draft, target (the answer begins on the full KV) or auto"),
    ] = None
    first_full_tokens: Annotated[
        int | None, typer.Option(help="tokens generated on the full KV before the target's own selection")
    ] = None
    renew_every: Annotated[
        int | None, typer.Option(help="generated tokens after which KV is selected anew at the latest; 0: never")
    ] = None
    renew_window: Annotated[int | None, typer.Option(help="newest tokens whose queries select KV anew")] = None
    continue_prompt_tokens: Annotated[
        int | None, typer.Option(help="prompt tokens of the earlier turn whose KV selection is reused (spec_kv, auto)")
    ] = None


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with each parameter whose type is a dataclass replaced by one flag for each field of that dataclass."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        annotation = hints[parameter.name]
        if is_dataclass(annotation) and isinstance(annotation, type):
            groups[parameter.name] = annotation
            parameters += _parameters(annotation)
        else:
            parameters.append(parameter.replace(annotation=annotation))

    @wraps(command)
    def run(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]
