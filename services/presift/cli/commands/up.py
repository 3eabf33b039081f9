"""`presift up`: run the whole stack on this machine until Ctrl-C or SIGTERM. `cli/stack` prints what happens then."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from presift.cli.demo_models import check_model, resolve_model
from presift.cli.render.console import exit_on_error, print_stderr
from presift.cli.settings import CliSettings
from presift.core.errors import PresiftError

# What draft and target cannot start without.
_PACKAGES = ("torch", "sglang")
_DRAFT, _TARGET = "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"


def up(
    *,
    draft: Annotated[str, typer.Option(help="draft: a model folder, demo model or hub id")] = _DRAFT,
    target: Annotated[str, typer.Option(help="target: a model folder, demo model or hub id")] = _TARGET,
    drafts: Annotated[int, typer.Option(min=1, max=64, help="number of draft replicas")] = 1,
    targets: Annotated[int, typer.Option(min=1, max=64, help="number of target replicas")] = 1,
    orchestrators: Annotated[
        int, typer.Option(min=1, max=64, help="number of orchestrators, on consecutive ports")
    ] = 1,
    listen: Annotated[str, typer.Option(help="HOST:PORT of the (first) orchestrator, gRPC")] = "127.0.0.1:50051",
    http_listen: Annotated[
        str | None, typer.Option(help="HOST:PORT for its OpenAI-compatible HTTP API; off if unset")
    ] = None,
    http_models: Annotated[
        str | None,
        typer.Option(help="comma-separated model names that the HTTP API accepts besides the target's id; *: any"),
    ] = None,
    http_max_tokens: Annotated[
        int | None, typer.Option(min=1, help="tokens to generate for an HTTP request that sets no limit")
    ] = None,
    http_origins: Annotated[
        str | None, typer.Option(help="comma-separated origins of web pages that may call the HTTP API (CORS)")
    ] = None,
    cache_url: Annotated[
        str | None,
        typer.Option(
            help="redis://, rediss://, redis+sentinel:// or redis+cluster:// URL; starts a local Valkey if unset",
            envvar="PRESIFT_CACHE_URL",
        ),
    ] = None,
    policy_file: Annotated[
        Path | None, typer.Option(help="the orchestrator's policy file: defaults by prompt length, target and tenant")
    ] = None,
    compress_above: Annotated[
        int | None, typer.Option(help="prompts of up to this many tokens are not compressed")
    ] = None,
    capacity: Annotated[int | None, typer.Option(help="prompt tokens to keep if a request sets no budget")] = None,
    kv_capacity: Annotated[int | None, typer.Option(help="KV tokens to keep if a request sets no budget")] = None,
    prefill_while_drafting: Annotated[
        bool | None, typer.Option(help="on spec_kv, the target reads the prompt while the draft works")
    ] = None,
    tool_call_parser: Annotated[
        str | None, typer.Option(help="the target's parser of tool calls: auto, none or a name of SGLang's")
    ] = None,
    reasoning_parser: Annotated[
        str | None, typer.Option(help="the target's parser of reasoning: auto, none or a name of SGLang's")
    ] = None,
    cross_vocabulary: Annotated[
        bool, typer.Option("--cross-vocabulary", help="allow a draft whose vocabulary differs from the target's")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="allow listening on a network address without authentication")
    ] = False,
    observability: Annotated[
        bool,
        typer.Option(
            "--observability", help="give each service a port for Prometheus metrics (implied by --otlp-endpoint)"
        ),
    ] = False,
    metrics_from: Annotated[int, typer.Option(min=1, max=65_535, help="first metrics port; others follow it")] = 9464,
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="HOST:PORT of an OTLP/gRPC collector that traces are sent to")
    ] = None,
) -> None:
    """Run cache, draft, target and orchestrator on this machine until Ctrl-C.

    Environment variables set everything else: PRESIFT_ORCHESTRATOR_..., PRESIFT_TARGET_..., PRESIFT_DRAFT_...
    (`python -m presift.orchestrator --help` lists them as flags). Logs are in PRESIFT_HOME/logs/PORT.
    """
    # Imported here: `presift generate` needs none of it.
    from presift.cli.stack import run  # noqa: PLC0415
    from presift.cli.stack.stack import Observability, StackOptions, log_folder  # noqa: PLC0415

    with exit_on_error():
        home = CliSettings().home
        check_packages()
        check_model("--draft", draft, home)
        check_model("--target", target, home)
        draft_model, target_model = (resolve_model(name, home, print_stderr) for name in (draft, target))
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
        target_flags=service_flags(tool_call_parser=tool_call_parser, reasoning_parser=reasoning_parser),
        orchestrator_flags=service_flags(
            http_models=http_models,
            http_max_tokens=http_max_tokens,
            http_origins=http_origins,
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
    raise typer.Exit(run.run_until_stopped(options, print_stderr))


def check_packages() -> None:
    """Raise PresiftError unless the packages that run the models are installed."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise PresiftError(
            f"`presift up` runs the models, but {' and '.join(missing)} cannot be imported: install the extras draft"
            " and target where presift came from (on a plain CPU: `make install` in a clone of the repository)"
        )


def service_flags(**values: int | bool | str | None) -> list[str]:
    """Flags of a service. None sets no flag, so that the service uses its own setting or environment variable."""
    flags: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", str(value)]
    return flags
