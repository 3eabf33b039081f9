"""`presift plan`: how many drafts, targets and orchestrators a load needs. No model runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console

from presift.cli.connection import ConnectionFlags, connect
from presift.cli.flags import AsJson, RouteName, TokenLimitFlags, with_flags
from presift.cli.render.console import exit_on_error, print_stderr
from presift.cli.settings import CliSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class LearntSpeedFlags(ConnectionFlags):
    """The orchestrator whose learned speeds are used, if any."""

    address: Annotated[str | None, typer.Option(help="use the speeds that this orchestrator has learned")] = None


@with_flags
def plan(
    *,
    rate: Annotated[float, typer.Option(help="requests per second")],
    mix: Annotated[str, typer.Option(help="prompt lengths, TOKENS:SHARE separated by commas: 2000:0.5,16000:0.5")],
    answer_tokens: Annotated[int, typer.Option(help="tokens of an answer")] = 256,
    cache_hits: Annotated[
        float, typer.Option(help="share of the compressed prompts that are in the cache, 0..1")
    ] = 0.0,
    draft: Annotated[
        str, typer.Option(help="draft: a model folder, or a known size such as qwen2.5-0.5b")
    ] = "qwen2.5-0.5b",
    target: Annotated[
        str, typer.Option(help="target: a model folder, or a known size such as qwen2.5-7b")
    ] = "qwen2.5-1.5b",
    device: Annotated[
        str, typer.Option(help="device of a target: cpu (two cores), l4, l40s, a100, h100 or h200")
    ] = "cpu",
    draft_device: Annotated[str | None, typer.Option(help="device of a draft; that of a target if unset")] = None,
    draft_tokens_per_s: Annotated[
        float | None, typer.Option(help="measured speed of a draft that scores 4,096 tokens")
    ] = None,
    target_tokens_per_s: Annotated[
        float | None, typer.Option(help="measured speed of a target that reads 4,096 tokens")
    ] = None,
    decode_step_ms: Annotated[
        float | None, typer.Option(help="measured decode step with one request and a short prompt")
    ] = None,
    route: RouteName = "auto",
    limit_flags: TokenLimitFlags,
    context: Annotated[int, typer.Option(help="context of the target, tokens", min=1)] = 131_072,
    utilisation: Annotated[float, typer.Option(help="most of a replica's time and KV to use, 0..1")] = 0.7,
    max_running: Annotated[
        int, typer.Option(help="most concurrent requests of a target; on a GPU give the number in its log")
    ] = 16,
    kv_pool_tokens: Annotated[
        int | None, typer.Option(help="KV tokens of a target; as many as fit its device if unset")
    ] = None,
    as_json: AsJson = False,
    connection: LearntSpeedFlags,
) -> None:
    """Estimate how many drafts, targets and orchestrators a load needs, and how much KV it holds; no model runs.

    Routes are chosen as by an orchestrator with the settings of this machine. Speeds are measurements with the demo
    pair on two cores (cpu), ESTIMATES from data sheets (GPUs), your own measurements, or what an orchestrator at
    --address has learned. ops/capacity.md explains the calculation and its limits.
    """
    # Imported here: `presift generate` needs none of it.
    from presift.cli.planning import devices, planner, route_table, workload  # noqa: PLC0415

    with exit_on_error():
        settings = CliSettings()
        speeds = None
        if connection.address is not None:
            with connect(connection, settings) as client:
                info = client.info()
            if (warning := route_table.restricted_warning(info)) is None:
                speeds = route_table.deployment_of(info).speeds
            else:
                print_stderr(warning)
        inputs = planner.PlanInputs(
            workload=workload.Workload(rate, workload.mix_of(mix), answer_tokens, cache_hits),
            draft=planner.model_on_device("draft", draft, draft_device or device, settings.home),
            target=planner.model_on_device("target", target, device, settings.home),
            measured=devices.MeasuredSpeeds(draft_tokens_per_s, target_tokens_per_s, decode_step_ms),
            options=workload.RequestOptions(planner.route_named(route), route_table.token_budget(limit_flags), context),
            utilisation=utilisation,
            max_running=max_running,
            kv_pool_tokens=kv_pool_tokens,
        )
        found = planner.plan(inputs, speeds)
    print(json.dumps(found.as_json())) if as_json else found.show(Console())
