"""Flags that several commands have, or that take more than a line to say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from presift.core.plan import Route

Document = Annotated[
    list[Path] | None,
    typer.Option("--document", "--file", help="a file for the question, dropped from; repeatable; - is stdin"),
]
RouteName = Annotated[str, typer.Option(help=", ".join(("auto", *Route)))]
MinCoverage = Annotated[float | None, typer.Option(help="below it, by the draft, a less lossy route is taken, 0..1")]
ContinuePromptTokens = Annotated[
    int | None, typer.Option(help="prompt tokens of the earlier turn whose KV selection to go on with (spec_kv, auto)")
]
AnswerTokens = Annotated[
    int | None, typer.Option(help="tokens of the answer that is left out: room and predictions depend on it")
]
CacheUrl = Annotated[
    str | None, typer.Option(help="redis:// or rediss:// URL; a local Valkey if unset", envvar="PRESIFT_CACHE_URL")
]
PolicyFile = Annotated[
    Path | None, typer.Option(help="the orchestrator's policy file: defaults by prompt length, target and tenant")
]
PrefillWhileDrafting = Annotated[bool | None, typer.Option(help="on spec_kv the target reads while the draft works")]
CrossVocabulary = Annotated[
    bool, typer.Option("--cross-vocabulary", help="let the draft have another vocabulary than the target")
]
Insecure = Annotated[bool, typer.Option("--insecure", help="listen beyond this machine although anybody could call")]
ObservabilityOn = Annotated[
    bool,
    typer.Option(
        "--observability",
        help="each service tells metrics to Prometheus on a port of its own (so with --otlp-endpoint)",
    ),
]
Tenant = Annotated[str | None, typer.Option(help="whose defaults of the policy file apply")]
LocalPolicy = Annotated[
    Path | None, typer.Option(help="a policy file of this machine; that of PRESIFT_ORCHESTRATOR_POLICY_FILE if unset")
]
LearntFrom = Annotated[
    str | None,
    typer.Option(help="take context, routes, threshold and learnt speeds (no policy file) from this orchestrator"),
]
