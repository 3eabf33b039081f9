"""`presift explain`: what would be kept of a prompt and why, in the terminal or as a page."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from presift.cli.connecting import Address, ApiKeyFile, Ca, Cert, Key, Tls, connect
from presift.cli.flags import AnswerTokens, ContinuePromptTokens, Document, MinCoverage, RouteName, Tenant
from presift.cli.render import answer
from presift.cli.render.console import errors_told, say
from presift_client import Explanation
from presift_client.requests import ExplainOptions


def explain(
    *,
    prompt: Annotated[str | None, typer.Argument(help="text, read as it is; or use --question")] = None,
    question: Annotated[str | None, typer.Option(help="a user turn, chat template applied")] = None,
    document: Document = None,
    system: Annotated[str | None, typer.Option(help="a system prompt (never dropped)")] = None,
    route: RouteName = "auto",
    max_prompt_tokens: Annotated[int | None, typer.Option(help="prompt tokens that the target may read")] = None,
    max_kv_tokens: Annotated[int | None, typer.Option(help="KV tokens that the prompt may hold")] = None,
    compress_above: Annotated[int | None, typer.Option(help="read prompts up to this many tokens in full")] = None,
    max_ttft_ms: Annotated[int | None, typer.Option(help="time to first token, as predicted")] = None,
    min_coverage: MinCoverage = None,
    auto_coverage: Annotated[float | None, typer.Option(help="the fewest tokens that cover this share, 0..1")] = None,
    kv_selection: Annotated[str | None, typer.Option(help="target_lookahead or draft_mask")] = None,
    keep_full_prefix: Annotated[bool | None, typer.Option(help="keep the KV of all that was read, as cache")] = None,
    kv_lookahead_tokens: Annotated[int | None, typer.Option(help="tokens the draft generates to choose KV by")] = None,
    continue_prompt_tokens: ContinuePromptTokens = None,
    strict: Annotated[bool, typer.Option("--strict", help="a budget that cannot be met is an error")] = False,
    max_new_tokens: AnswerTokens = None,
    kv_map: Annotated[bool, typer.Option(help="where KV is dropped, have the target say which")] = True,
    html: Annotated[Path | None, typer.Option(help="write a page to this file instead")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object: decision, routes, text and the fate of every token")
    ] = False,
    deadline_s: Annotated[float | None, typer.Option("--deadline", help="seconds for all of it")] = None,
    tenant: Tenant = None,
    address: Address = None,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    api_key_file: ApiKeyFile = None,
) -> None:
    """Show what would be kept of a prompt and what dropped, and how important it is to the draft."""
    request = answer.options(
        route=route,
        max_prompt_tokens=max_prompt_tokens,
        max_kv_tokens=max_kv_tokens,
        compress_above_tokens=compress_above,
        max_ttft_ms=max_ttft_ms,
        min_coverage=min_coverage,
        auto_coverage=auto_coverage,
        kv_selection=kv_selection,
        keep_full_prefix=keep_full_prefix,
        kv_lookahead_tokens=kv_lookahead_tokens,
        continue_prompt_tokens=continue_prompt_tokens,
        strict=strict,
        max_new_tokens=max_new_tokens,
        deadline_s=deadline_s,
        include_kv_mask=kv_map,
        span_per_token=True,
    )
    with errors_told():
        check_place(html)
        if as_json and html is not None:
            raise ValueError("give either --json or --html")
        request |= answer.prompt_options(prompt, question, document or [], system)
        with connect(address, ca, cert, key, api_key_file, tls=tls, tenant=tenant) as client:
            explanation = client.explain(**cast(ExplainOptions, request))
        print(as_text(explanation)) if as_json else show(explanation, html)


def check_place(html: Path | None) -> None:
    """Raise ValueError where no file can be, before anything is asked."""
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise ValueError(f"{html} cannot be written: it is a folder, or lies in none")


def as_text(explanation: Explanation) -> str:
    """All of it as one JSON object; the KV mask's bits in base64."""
    return json.dumps(asdict(explanation), ensure_ascii=False, default=lambda bits: base64.b64encode(bits).decode())


def show(explanation: Explanation, html: Path | None) -> None:
    """To the terminal, or to a page."""
    # Imported here: `presift generate` needs neither.
    from presift.cli.render import page, terminal  # noqa: PLC0415

    if html is None:
        terminal.show(explanation, Console())
        return
    html.write_text(page.page_of(explanation), encoding="utf-8", newline="\n")
    for line in terminal.summary(explanation):
        say(line)
    say(f"wrote {html} ({html.stat().st_size / 1024:.0f} KiB)")
