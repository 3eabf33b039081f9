"""`presift route`: the predicted cost of every route, and the one that AUTO would choose. No model runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from presift.cli.connection import ConnectionFlags, connect
from presift.cli.flags import AsJson, BudgetFlags, with_flags
from presift.cli.render.console import exit_on_error, print_stderr
from presift.cli.settings import CliSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class LearntFromFlags(ConnectionFlags):
    """The orchestrator whose learned speeds are used, if any."""

    address: Annotated[
        str | None,
        typer.Option(help="use context, routes, threshold and learned speeds of this orchestrator, but no policy file"),
    ] = None


@with_flags
def route(
    *,
    tokens: Annotated[int, typer.Option(help="length of the prompt, tokens", min=1)],
    budget_flags: BudgetFlags,
    cached_prefix: Annotated[int, typer.Option(help="prompt tokens that the target has cached", min=0)] = 0,
    context: Annotated[int | None, typer.Option(help="context of the target, tokens", min=1)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens to generate", min=1)] = 256,
    policy: Annotated[
        Path | None,
        typer.Option(help="a policy file on this machine; PRESIFT_ORCHESTRATOR_POLICY_FILE if unset"),
    ] = None,
    model: Annotated[str, typer.Option(help="target id, as in the policy file")] = "",
    tenant: Annotated[str | None, typer.Option(help="the tenant whose defaults of that policy file apply")] = None,
    as_json: AsJson = False,
    connection: LearntFromFlags,
) -> None:
    """Show which route AUTO would choose and why, with the predicted cost of every route; no model runs.

    Capacities come from the settings on this machine (PRESIFT_ORCHESTRATOR_...) or its policy file, because an
    orchestrator does not send its own. presift warns if the orchestrator uses a policy file and you give none.
    Without --address the speeds are those of the demo pair on two CPU cores. There is no --min-coverage, because
    coverage is unknown until a draft has read the prompt.
    """
    # Imported here: `presift generate` needs none of it.
    from presift.cli.planning import route_table  # noqa: PLC0415

    with exit_on_error():
        budget = route_table.budget_of(budget_flags)
        prompt = route_table.Prompt(tokens, cached_prefix, max_new_tokens)
        deployment = route_table.Deployment()
        if connection.address is not None:
            with connect(connection, CliSettings()) as client:
                info = client.info()
            deployment = route_table.deployment_of(info)
            for warning in (route_table.policy_file_warning(info, policy), route_table.restricted_warning(info)):
                if warning is not None:
                    print_stderr(warning)
        deployment = deployment.overridden(context, has_policy_file=policy is not None)
        defaults = route_table.defaults_for(tokens, policy, model or deployment.target_id, tenant)
        prediction = route_table.predict(defaults, budget, prompt, deployment)
    print(json.dumps(prediction.as_json())) if as_json else prediction.show(Console())
    if prediction.choice is None:
        raise typer.Exit(1)
