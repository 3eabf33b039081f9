"""`presift up | generate | explain | route | plan | models | keys`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from presift.cli.commands import explain
from presift.cli.commands.keys import keys
from presift.cli.commands.plan import plan
from presift.cli.connecting import Address, ApiKeyFile, Ca, Cert, Key, Tls, connect
from presift.cli.flags import (
    CacheUrl,
    ContinuePromptTokens,
    CrossVocabulary,
    Document,
    Insecure,
    LearntFrom,
    LocalPolicy,
    MinCoverage,
    ObservabilityOn,
    PolicyFile,
    PrefillWhileDrafting,
    RouteName,
    Tenant,
)
from presift.cli.render import answer
from presift.cli.render.console import errors_told, fail, say
from presift.cli.settings import CliSettings

app = typer.Typer(
    help="presift makes long prompts cheap: a small draft says what matters, the large target keeps only that.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_DRAFT, _TARGET = "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"


def main() -> None:
    """The console script."""
    app()


@app.command()
def up(
    *,
    draft: Annotated[str, typer.Option(help="model folder, catalogue name or hub id")] = _DRAFT,
    target: Annotated[str, typer.Option(help="model folder, catalogue name or hub id")] = _TARGET,
    drafts: Annotated[int, typer.Option(min=1, max=64, help="draft replicas")] = 1,
    targets: Annotated[int, typer.Option(min=1, max=64, help="target replicas")] = 1,
    orchestrators: Annotated[int, typer.Option(min=1, max=64, help="orchestrators, one port after the other")] = 1,
    listen: Annotated[str, typer.Option(help="where the (first) orchestrator listens")] = "127.0.0.1:50051",
    http_listen: Annotated[str | None, typer.Option(help="where it takes OpenAI's HTTP requests; off if unset")] = None,
    cache_url: CacheUrl = None,
    policy_file: PolicyFile = None,
    compress_above: Annotated[int | None, typer.Option(help="read prompts up to this many tokens in full")] = None,
    capacity: Annotated[int | None, typer.Option(help="prompt tokens to keep where no budget is set")] = None,
    kv_capacity: Annotated[int | None, typer.Option(help="KV tokens to keep where no budget is set")] = None,
    prefill_while_drafting: PrefillWhileDrafting = None,
    cross_vocabulary: CrossVocabulary = False,
    insecure: Insecure = False,
    observability: ObservabilityOn = False,
    metrics_from: Annotated[int, typer.Option(min=1, max=65_535, help="the first of these ports")] = 9464,
    otlp_endpoint: Annotated[str | None, typer.Option(help="HOST:PORT (OTLP/gRPC) that traces are sent to")] = None,
) -> None:
    """Run cache, draft, target and orchestrator on this machine until Ctrl-C.

    All other settings of the services are variables: PRESIFT_ORCHESTRATOR_..., PRESIFT_TARGET_..., PRESIFT_DRAFT_...
    (`python -m presift.orchestrator --help` lists them as flags). Logs: PRESIFT_HOME/logs/PORT.
    """
    # Imported here: `presift generate` needs none of it.
    from presift.cli.commands.up import run_until_stopped  # noqa: PLC0415
    from presift.cli.stack.stack import Observability, StackOptions, log_folder  # noqa: PLC0415

    home = CliSettings().home
    draft_model, target_model = (_resolved(name, home) for name in (draft, target))
    options = StackOptions(
        draft=draft_model,
        target=target_model,
        tokenizer=target_model,
        logs=log_folder(home, listen),
        listen=listen,
        http_listen=http_listen,
        cache_url=cache_url,
        drafts=drafts,
        targets=targets,
        orchestrators=orchestrators,
        observability=Observability(metrics_from, otlp_endpoint) if observability or otlp_endpoint else None,
        orchestrator_flags=_flags(
            policy_file=None if policy_file is None else str(policy_file),
            compress_above_tokens=compress_above,
            capacity=capacity,
            kv_capacity=kv_capacity,
            prefill_while_drafting=prefill_while_drafting,
            cross_vocabulary=True if cross_vocabulary else None,
            draft_tokenizer=draft_model if cross_vocabulary else None,
            insecure=True if insecure else None,
        ),
    )
    raise typer.Exit(run_until_stopped(options, say))


def _resolved(name: str, home: Path) -> str:
    """Where the model is, fetched if need be; ends the command, saying why, where it cannot be had."""
    from presift_demo_models.errors import ModelError  # noqa: PLC0415
    from presift_demo_models.fetch import resolve_model  # noqa: PLC0415

    try:
        return resolve_model(name, home, say)
    except ModelError as error:
        fail(str(error))


@app.command()
def generate(
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
    max_new_tokens: Annotated[int, typer.Option(help="tokens of the answer")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    deadline_s: Annotated[float | None, typer.Option("--deadline", help="seconds for the whole answer")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object: answer, decision, usage")] = False,
    tenant: Tenant = None,
    address: Address = None,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    api_key_file: ApiKeyFile = None,
) -> None:
    """Answer a prompt, or a question about documents; the decision goes to stderr."""
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
        temperature=temperature,
        deadline_s=deadline_s,
    )
    with errors_told():
        request |= answer.prompt_options(prompt, question, document or [], system)
        with connect(address, ca, cert, key, api_key_file, tls=tls, tenant=tenant) as client:
            answer.show_json(client, request) if as_json else answer.show_stream(client, request)


app.command()(explain.explain)
app.command()(plan)
app.add_typer(keys, name="keys")


@app.command()
def models(
    *,
    ensure: Annotated[list[str] | None, typer.Option(help="download and convert this model; repeatable")] = None,
    address: Address = None,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    api_key_file: ApiKeyFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """List the demo models and, if an orchestrator answers, the models behind it."""
    from presift_demo_models.errors import ModelError  # noqa: PLC0415
    from presift_demo_models.fetch import ensure_model, list_models  # noqa: PLC0415

    settings = CliSettings()
    try:
        for name in ensure or []:
            ensure_model(name, settings.home, say)
    except ModelError as error:
        fail(str(error))
    local = {name: None if folder is None else str(folder) for name, folder in list_models(settings.home).items()}
    with errors_told():
        served = answer.served(connect(address, ca, cert, key, api_key_file, tls=tls))
    if as_json:
        print(json.dumps({"local": local, "served": None if served is None else asdict(served)}))
        return
    table = Table("model", "folder")
    for name, folder in local.items():
        table.add_row(name, folder or "not here: presift models --ensure " + name)
    if served is not None:
        table.add_row("served as target", served.target.id)
        table.add_row("served as draft", served.draft.id if served.draft else "none")
        for replica in served.replicas:
            table.add_row(f"{replica.role} replica", answer.replica_line(replica))
    Console().print(table)


@app.command()
def route(
    *,
    tokens: Annotated[int, typer.Option(help="prompt tokens", min=1)],
    max_prompt_tokens: Annotated[int | None, typer.Option(help="prompt tokens that the target may read")] = None,
    max_kv_tokens: Annotated[int | None, typer.Option(help="KV tokens that the prompt may hold")] = None,
    max_ttft_ms: Annotated[int | None, typer.Option(help="time to first token, as predicted")] = None,
    auto_coverage: Annotated[float | None, typer.Option(help="the fewest tokens that cover this share, 0..1")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="a budget that cannot be met is an error")] = False,
    compress_above: Annotated[int | None, typer.Option(help="read prompts up to this many tokens in full")] = None,
    cached_prefix: Annotated[int, typer.Option(help="prompt tokens in the target's cache", min=0)] = 0,
    context: Annotated[int | None, typer.Option(help="the target's context, tokens", min=1)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="tokens of the answer", min=1)] = 256,
    policy: LocalPolicy = None,
    model: Annotated[str, typer.Option(help="target id, as the policy file names it")] = "",
    tenant: Annotated[str | None, typer.Option(help="whose defaults of that policy file apply")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
    address: LearntFrom = None,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    api_key_file: ApiKeyFile = None,
) -> None:
    """Show what AUTO would do and why, with every route's predicted cost; nothing is run.

    Capacities are those of this machine's settings (PRESIFT_ORCHESTRATOR_...) or policy file, as an orchestrator does
    not send its own; where it has a policy file and none is given here, that is told. Without an address speeds are
    those of the demo pair on two CPU cores. There is no --min-coverage: coverage is known once a draft has read.
    """
    from presift.cli.planning import route_table  # noqa: PLC0415
    from presift.core import errors  # noqa: PLC0415

    try:
        budget = route_table.Budget(
            max_prompt_tokens=max_prompt_tokens,
            max_kv_tokens=max_kv_tokens,
            max_ttft_ms=max_ttft_ms,
            strict=strict,
            compress_above_tokens=compress_above,
            auto_capacity=None if auto_coverage is None else route_table.AutoCapacity(auto_coverage),
        )
        prompt, stack = route_table.Prompt(tokens, cached_prefix, max_new_tokens), route_table.Behind()
        if address is not None:
            with errors_told(), connect(address, ca, cert, key, api_key_file, tls=tls) as client:
                info = client.info()
                stack = route_table.behind(info)
            if (note := route_table.policy_note(info, policy)) is not None:
                say(note)
        if context is not None:
            stack = replace(stack, context_tokens=context)
        if policy is not None:  # its thresholds, not those in force there
            stack = replace(stack, compress_above_tokens=None)
        terms = route_table.terms_for(tokens, policy, model or stack.target_id, tenant)
        found = route_table.outcome(terms, budget, prompt, stack)
    except errors.PresiftError as error:
        fail(error.message)
    print(json.dumps(found.as_json())) if as_json else found.show(Console())
    if not found.is_answered:
        raise typer.Exit(1)


def _flags(**given: int | bool | str | None) -> list[str]:
    """What was not given stays at the service's own setting, its variables included."""
    flags: list[str] = []
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", str(value)]
    return flags
