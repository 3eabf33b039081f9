"""The settings of the orchestrator: flags (`--draft-address`) or variables (`PRESIFT_ORCHESTRATOR_DRAFT_ADDRESS`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from presift.core.errors import InvalidRequest, PresiftError
from presift.core.kv_plan import MAX_KERNEL_TOKENS
from presift.core.limits import MAX_LOOKAHEAD_TOKENS
from presift.core.plan import Route
from presift.core.policies import KvSelection, Pool, Reduction, SpecKv, SpecPc
from presift.orchestrator.admission.admission import QueueLimits
from presift.orchestrator.admission.quotas import FailureMode
from presift.orchestrator.domain.request import AutoCapacity
from presift.orchestrator.routing.choice import ROUTE_ORDER, Defaults
from presift.orchestrator.routing.quality_gate import Thresholds
from presift.rpc.security.certificates import TlsFiles
from presift.rpc.security.peer import Peer
from presift.rpc.settings import ServiceSettings


class OrchestratorSettings(ServiceSettings):
    """presift's orchestrator: the door for applications."""

    model_config = SettingsConfigDict(
        env_prefix="PRESIFT_ORCHESTRATOR_", cli_prog_name="python -m presift.orchestrator"
    )

    listen: Annotated[str, Field(pattern=r"^.+:\d{1,5}$", description="HOST:PORT; port 0 takes any free one")] = (
        "127.0.0.1:50051"
    )
    http_listen: Annotated[
        str | None,
        Field(pattern=r"^.+:\d{1,5}$", description="HOST:PORT of the OpenAI-compatible HTTP door; none if unset"),
    ] = None
    http_models: Annotated[
        str, Field(description="further names of the target there, comma between; `*` is any name")
    ] = ""
    http_max_tokens: Annotated[
        int, Field(ge=1, le=1_048_576, description="tokens to generate there where a request names no number")
    ] = 1024
    draft_address: Annotated[
        str, Field(description="HOST:PORT, a comma list, or dns:///HOST:PORT whose every record is a replica")
    ] = "127.0.0.1:50052"
    target_address: Annotated[str, Field(description="likewise")] = "127.0.0.1:50053"
    draft_hedge_after_s: Annotated[
        float | None, Field(gt=0, description="seconds after which one other draft is asked too; off if unset")
    ] = None
    peer_ca: Annotated[
        Path | None, Field(description="PEM: the authority of draft and target, reached by TLS; read again on change")
    ] = None
    peer_cert: Annotated[Path | None, Field(description="PEM: our certificate there (mutual TLS)")] = None
    peer_key: Annotated[Path | None, Field(description="PEM: its key, not encrypted")] = None
    peer_name_override: Annotated[
        str, Field(description="the name in draft's and target's certificates, if it is not that of their address")
    ] = ""
    cache_url: Annotated[
        SecretStr, Field(description="memory://, redis://, rediss:// or unix://; any Redis 6+ or Valkey")
    ] = SecretStr("memory://")
    cache_url_file: Annotated[Path | None, Field(description="where the URL is, if it holds a password")] = None
    cache_ca: Annotated[Path | None, Field(description="PEM: the authority of a rediss:// cache")] = None
    cache_ttl_s: Annotated[float, Field(gt=0, description="seconds that a compressed prompt is kept")] = 86_400.0
    cache_timeout_s: Annotated[float, Field(gt=0, description="seconds after which a look-up is a miss")] = 0.05
    tokenizer: Annotated[
        str | None, Field(description="the target's folder or hub id; without it only token ids are accepted")
    ] = None
    cross_vocabulary: Annotated[
        bool, Field(description="let the draft have another vocabulary than the target; needs both tokenizers")
    ] = False
    draft_tokenizer: Annotated[
        str | None, Field(description="the draft's folder or hub id; read with cross_vocabulary alone")
    ] = None
    token_memory: Annotated[int, Field(ge=0, description="token ids of recent prompts to remember, 4 bytes each")] = (
        4_000_000
    )
    tenant_salt: Annotated[SecretStr, Field(description="separates caches that must not share")] = SecretStr("")
    tenant_salt_file: Annotated[Path | None, Field(description="where the salt is")] = None
    api_keys_file: Annotated[
        Path | None,
        Field(
            description="YAML or JSON: hashed keys and tenants' limits; callers must show a key (`presift keys new`)"
        ),
    ] = None
    jwks_file: Annotated[
        Path | None, Field(description="public keys (JWKS): callers may show a token that one of them signed")
    ] = None
    jwt_issuer: Annotated[str, Field(description="`iss` that tokens must have")] = ""
    jwt_audience: Annotated[str, Field(description="`aud` that tokens must have")] = ""
    jwt_tenant_claim: Annotated[str, Field(min_length=1, description="the claim that names the tenant")] = "tenant"
    tenant_tokens_per_minute: Annotated[
        int | None, Field(ge=1, description="prompt and generated tokens of a tenant that has no limit of its own")
    ] = None
    tenant_concurrency: Annotated[
        int | None, Field(ge=1, description="calls at once of a tenant that has no limit of its own")
    ] = None
    limits_on_trouble: Annotated[
        FailureMode, Field(description="while the cache's server cannot tell what tenants have used: let in, or refuse")
    ] = FailureMode.OPEN
    limits_timeout_s: Annotated[float, Field(gt=0, description="seconds after which it cannot tell")] = 0.25
    explain: Annotated[bool, Field(description="answer Explain, which shows what of a prompt is kept")] = True
    draft_timeout_s: Annotated[float, Field(gt=0, description="seconds after which the full context is used")] = 60.0
    max_running: Annotated[
        int, Field(ge=1, description="requests in work at once: what the targets take, shared among the orchestrators")
    ] = 64
    max_waiting: Annotated[int, Field(ge=0, description="requests that may wait for it, fair between tenants")] = 1024
    max_waiting_mib: Annotated[int, Field(ge=1, description="memory that these may hold, MiB; more is refused")] = 256
    compress_above_tokens: Annotated[int, Field(ge=0, description="prompts up to this are never compressed")] = 4096
    capacity: Annotated[int, Field(ge=1, description="prompt tokens to keep where the caller sets no budget")] = 1024
    auto_coverage: Annotated[
        float | None,
        Field(gt=0, le=1, description="capacities are upper bounds: the fewest tokens that cover this share are kept"),
    ] = None
    window: Annotated[int, Field(ge=1, description="last prompt tokens, always kept, whose queries score")] = 32
    pool: Annotated[Pool, Field(description="how importance is smoothed along the prompt")] = Pool.MEAN
    kernel: Annotated[int, Field(ge=1, description="pooling width, tokens")] = 5
    neighbors: Annotated[int, Field(ge=0, description="neighbourhood kept around a peak, tokens")] = 16
    start_layer: Annotated[
        int | None, Field(ge=0, description="first layer of the draft that is scored; its middle one if unset")
    ] = None
    lookahead_tokens: Annotated[
        int, Field(ge=1, description="1 scores the prompt alone; m adds the rows of m - 1 generated tokens")
    ] = 8
    kv_capacity: Annotated[int, Field(ge=1, description="KV tokens to keep beside the final one, without a budget")] = (
        512
    )
    cascade_capacity: Annotated[int, Field(ge=1, description="prompt tokens that spec_kv_pc keeps first")] = 2048
    kv_selection: Annotated[KvSelection, Field(description="whose queries choose the KV on spec_kv")] = (
        KvSelection.TARGET_LOOKAHEAD
    )
    kv_lookahead_tokens: Annotated[
        int, Field(ge=0, le=MAX_LOOKAHEAD_TOKENS, description="tokens the draft generates, for the target to choose by")
    ] = 24
    kv_window: Annotated[int, Field(ge=1, description="last prompt tokens whose KV is always kept")] = 32
    kv_pool: Annotated[Pool, Field(description="how the importance of KV is smoothed along the prompt")] = Pool.MAX
    kv_kernel: Annotated[int, Field(ge=1, le=MAX_KERNEL_TOKENS, description="its pooling width, tokens; odd")] = 7
    kv_reduction: Annotated[Reduction, Field(description="how the rows and heads of a group become one number")] = (
        Reduction.MAX
    )
    prefill_while_drafting: Annotated[
        bool, Field(description="the target reads while the draft works; nothing gained where both share a device")
    ] = True
    route_order: Annotated[
        str, Field(description="the routes that AUTO may take, the least lossy first; full among them")
    ] = ",".join(ROUTE_ORDER)
    learn_speeds: Annotated[bool, Field(description="predict from the stages' own timings, not from seeds alone")] = (
        True
    )
    calibrate: Annotated[
        bool, Field(description="time a few made-up prompts after the start, until a caller comes")
    ] = True
    calibration_limit_s: Annotated[float, Field(gt=0, description="seconds after which calibration ends")] = 20.0
    prefix_memory: Annotated[int, Field(ge=0, description="prompt tokens to know of in the target's cache")] = 4_194_304
    turn_memory: Annotated[int, Field(ge=0, description="KV selections that later turns may go on with")] = 1024
    policy_file: Annotated[
        Path | None, Field(description="YAML: defaults by prompt length, model and tenant; read again on SIGHUP")
    ] = None
    guard_share: Annotated[
        float, Field(ge=0, le=1, description="share of compressed requests that full answers too, in the background")
    ] = 0.01
    guard_max_new_tokens: Annotated[int, Field(ge=1, le=1024, description="tokens of both answers to compare")] = 64
    guard_switches: Annotated[bool, Field(description="switch routes off by it; else it only measures")] = True
    guard_off_below: Annotated[
        float, Field(ge=0, lt=1, description="mean overlap with full's answers below which a route is switched off")
    ] = 0.45
    guard_on_above: Annotated[float, Field(ge=0, lt=1, description="mean overlap above which it is on again")] = 0.65
    guard_least_samples: Annotated[int, Field(ge=1, description="samples without which no switch moves")] = 20
    guard_window: Annotated[int, Field(ge=1, description="last samples of a route and length band to judge by")] = 50

    def admission_limits(self) -> QueueLimits:
        """How many requests are in work and wait, and what these may hold."""
        return QueueLimits(self.max_running, self.max_waiting, self.max_waiting_mib * 2**20)

    def defaults(self) -> Defaults:
        """Raises InvalidRequest for a policy that cannot hold."""
        spec_pc = SpecPc(
            capacity=self.capacity,
            window=self.window,
            pool=self.pool,
            kernel=self.kernel,
            neighbors=self.neighbors,
            lookahead_tokens=self.lookahead_tokens,
        )
        return Defaults(
            spec_pc,
            self.compress_above_tokens,
            self.start_layer,
            self._spec_kv(),
            self.cascade_capacity,
            routes_of(self.route_order),
            None if self.auto_coverage is None else AutoCapacity(self.auto_coverage),
        )

    def defaults_with(self, changes: Mapping[str, Any]) -> Defaults:
        """The defaults with settings of these names changed; the values have their types. Raises InvalidRequest."""
        return self.model_copy(update=changes).defaults()

    @property
    def knows_callers(self) -> bool:
        """Whether callers must show who they are."""
        return self.tls_client_ca is not None or self.api_keys_file is not None or self.jwks_file is not None

    def peer(self) -> Peer:
        """How draft and target are reached. Raises PresiftError for settings that do not go together."""
        files = TlsFiles(self.peer_cert, self.peer_key, self.peer_ca, ("peer_cert", "peer_key", "peer_ca"))
        if files.ca is None and (files.cert is not None or self.peer_name_override):
            raise PresiftError("peer_cert and peer_name_override go with peer_ca")
        return Peer(None if files.ca is None else files, self.peer_name_override, self.tokens())

    def cache_url_in_force(self) -> str:
        """It may hold a password. Raises PresiftError, which does not quote it."""
        url = self.secret("cache_url")
        if self.cache_ca is None:
            return url
        if not url.lower().startswith("rediss://"):
            raise PresiftError("cache_ca goes with a rediss:// cache_url")
        return f"{url}{'&' if '?' in url else '?'}{urlencode({'ssl_ca_certs': self.cache_ca})}"

    def thresholds(self) -> Thresholds:
        """When the quality guard moves a switch. Raises InvalidRequest where they cannot hold together."""
        return Thresholds(
            self.guard_off_below, self.guard_on_above, self.guard_least_samples, self.guard_window, self.guard_switches
        )

    def _spec_kv(self) -> SpecKv:
        return SpecKv(
            capacity=self.kv_capacity,
            window=self.kv_window,
            pool=self.kv_pool,
            kernel=self.kv_kernel,
            reduction=self.kv_reduction,
            lookahead_tokens=self.kv_lookahead_tokens,
            selection=self.kv_selection,
        )


def routes_of(names: str) -> tuple[Route, ...]:
    """Routes by name, comma between. Raises InvalidRequest, listing those that there are."""
    try:
        return tuple(Route(name.strip()) for name in names.split(","))
    except ValueError:
        raise InvalidRequest("route_order", names, f"of {', '.join(Route)}") from None
