"""`presift plan`: how many drafts, targets and orchestrators a load needs. Nothing is run."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from presift.cli.connecting import ApiKeyFile, Ca, Cert, Key, Tls, connect
from presift.cli.flags import RouteName
from presift.cli.render.console import errors_told, fail
from presift.cli.settings import CliSettings

Learnt = Annotated[str | None, typer.Option(help="take the speeds that this orchestrator has learnt")]


def plan(
    *,
    rate: Annotated[float, typer.Option(help="requests per second")],
    mix: Annotated[str, typer.Option(help="TOKENS:SHARE of prompts, comma between: 2000:0.5,16000:0.5")],
    answer_tokens: Annotated[int, typer.Option(help="tokens of an answer")] = 256,
    cache_hits: Annotated[float, typer.Option(help="share of the compressed prompts that the cache knows, 0..1")] = 0.0,
    draft: Annotated[str, typer.Option(help="model folder, or a size: qwen2.5-0.5b, ...")] = "qwen2.5-0.5b",
    target: Annotated[str, typer.Option(help="likewise")] = "qwen2.5-1.5b",
    device: Annotated[str, typer.Option(help="of a target: cpu (two cores), l4, l40s, a100, h100, h200")] = "cpu",
    draft_device: Annotated[str | None, typer.Option(help="of a draft, if another one")] = None,
    draft_tokens_per_s: Annotated[float | None, typer.Option(help="measured, a draft scoring 4,096 tokens")] = None,
    target_tokens_per_s: Annotated[float | None, typer.Option(help="measured, a target reading 4,096 tokens")] = None,
    decode_step_ms: Annotated[float | None, typer.Option(help="measured, one request that holds little")] = None,
    route: RouteName = "auto",
    max_prompt_tokens: Annotated[int | None, typer.Option(help="prompt tokens that the target may read")] = None,
    max_kv_tokens: Annotated[int | None, typer.Option(help="KV tokens that the prompt may hold")] = None,
    compress_above: Annotated[int | None, typer.Option(help="read prompts up to this many tokens in full")] = None,
    context: Annotated[int, typer.Option(help="the target's context, tokens", min=1)] = 131_072,
    utilisation: Annotated[float, typer.Option(help="of a replica's time and KV, at most, 0..1")] = 0.7,
    max_running: Annotated[int, typer.Option(help="requests that a target generates together")] = 16,
    kv_pool_tokens: Annotated[int | None, typer.Option(help="KV tokens of a target; what fits if unset")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
    address: Learnt = None,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    api_key_file: ApiKeyFile = None,
) -> None:
    """Reckon how many drafts, targets and orchestrators a load needs, and what KV memory it holds; nothing is run.

    Routes are chosen as an orchestrator with this machine's settings would. Speeds are those measured with the demo
    pair on two cores (cpu), ESTIMATES from data sheets (GPUs), what you say that you measured, or what an orchestrator
    at --address has learnt. How it reckons, and how far to trust it: ops/capacity.md.
    """
    # Imported here: `presift generate` needs none of it.
    from presift.cli.planning import (  # noqa: PLC0415
        devices,
        planner,
        route_table,
        workload,
    )
    from presift.core import errors  # noqa: PLC0415

    try:
        speeds = None
        if address is not None:
            with errors_told(), connect(address, ca, cert, key, api_key_file, tls=tls) as client:
                speeds = route_table.behind(client.info()).speeds
        asked = planner.Asked(
            workload=workload.Workload(rate, workload.mix_of(mix), answer_tokens, cache_hits),
            draft=planner.model("draft", draft, draft_device or device, CliSettings().home),
            target=planner.model("target", target, device, CliSettings().home),
            said=devices.Said(draft_tokens_per_s, target_tokens_per_s, decode_step_ms),
            wish=planner.wish(route, context, max_prompt_tokens, max_kv_tokens, compress_above),
            utilisation=utilisation,
            max_running=max_running,
            kv_pool_tokens=kv_pool_tokens,
        )
        found = planner.plan(asked, speeds)
    except errors.PresiftError as error:
        fail(error.message)
    print(json.dumps(found.as_json())) if as_json else found.show(Console())
