"""Settings of the side that faces callers: addresses, credentials, tenants' quotas and the request queue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, SecretStr

from presift.orchestrator.admission.quotas import FailureMode
from presift.rpc.settings import Address


class ListenSettings(BaseModel):
    """Addresses and HTTP API"""

    listen: Annotated[Address, Field(description="HOST:PORT of the gRPC API; port 0 picks a free port")] = (
        "127.0.0.1:50051"
    )
    http_listen: Annotated[
        Address | None,
        Field(description="HOST:PORT of the OpenAI-compatible HTTP API; off if unset"),
    ] = None
    http_models: Annotated[
        str,
        Field(description="comma-separated model names that the HTTP API accepts besides the target's id; `*`: any"),
    ] = ""
    http_max_tokens: Annotated[
        int, Field(ge=1, le=1_048_576, description="tokens to generate for an HTTP request that sets no limit")
    ] = 1024
    http_origins: Annotated[
        str,
        Field(
            pattern=r"^(\*|([a-z][a-z0-9+.-]*://[^\s/,*]+(\s*,\s*|$))*)$",
            description="comma-separated origins (https://app.example.com) of web pages that may call the HTTP API"
            " (CORS); `*`: any, where keys or tokens are required; none by default",
        ),
    ] = ""
    http_hosts: Annotated[
        str,
        Field(
            pattern=r"^([A-Za-z0-9._-]+\s*(,\s*|$))*$",
            description="comma-separated host names, without a port, by which callers may reach the HTTP API where it"
            " has neither TLS nor keys or tokens, besides IP addresses, localhost and that of http_listen",
        ),
    ] = ""
    http_keepalive_comment_s: Annotated[
        float | None,
        Field(
            ge=0.01,
            le=3600,
            description="seconds of silence in an HTTP stream after which a comment (`: waiting`) is sent, for proxies"
            " that close silent connections; off if unset, because some clients cannot read comments",
        ),
    ] = None
    http_docs: Annotated[
        bool, Field(description="serve /docs and /openapi.json, which describe the HTTP API, without a key")
    ] = True
    lame_duck_s: Annotated[
        float,
        Field(
            ge=0,
            le=600,
            description="seconds after SIGTERM in which new calls are still answered, over HTTP with"
            " `Connection: close`; then drain_s begins",
        ),
    ] = 5.0
    max_connection_age_s: Annotated[
        float | None,
        Field(
            ge=1,
            le=86_400,
            description="seconds after which a gRPC caller must reconnect, and so may meet another orchestrator; gRPC"
            " varies them by a tenth",
        ),
    ] = 300.0
    max_connection_age_grace_s: Annotated[
        float | None,
        Field(
            ge=1,
            le=86_400,
            description="seconds that calls of such an old connection get to finish; as long as they take if unset",
        ),
    ] = None
    explain: Annotated[
        bool, Field(description="serve Explain, which shows which parts of a prompt presift would keep")
    ] = True


class CallerSettings(BaseModel):
    """Authentication of callers"""

    api_keys_file: Annotated[
        Path | None,
        Field(description="YAML or JSON: hashed API keys and tenants' limits; requires a key (see `presift keys new`)"),
    ] = None
    jwks_file: Annotated[
        Path | None, Field(description="JWKS: public keys; accepts bearer tokens that one of them signed")
    ] = None
    jwt_issuer: Annotated[str, Field(description="required `iss` of tokens")] = ""
    jwt_audience: Annotated[str, Field(description="required `aud` of tokens")] = ""
    jwt_tenant_claim: Annotated[str, Field(min_length=1, description="token claim that holds the tenant")] = "tenant"
    jwt_admin_claim: Annotated[
        str | None,
        Field(
            min_length=1,
            description="token claim that is true for administrators, who see replicas, speeds and routes' quality"
            " (GetInfo); no token is an administrator's if unset",
        ),
    ] = None
    jwt_max_lifetime_s: Annotated[
        float,
        Field(
            ge=1,
            allow_inf_nan=False,
            description="longest lifetime of tokens, seconds from `iat` (now, if there is none) to `exp`; others are"
            " refused",
        ),
    ] = 86_400.0
    tenant_salt: Annotated[
        SecretStr, Field(description="secret that separates the cache entries of installations sharing a cache")
    ] = SecretStr("")
    tenant_salt_file: Annotated[Path | None, Field(description="file with the tenant salt")] = None


class QuotaSettings(BaseModel):
    """Quotas of tenants"""

    tenant_tokens_per_minute: Annotated[
        int | None,
        Field(ge=1, description="prompt plus generated tokens per minute for tenants without a limit of their own"),
    ] = None
    tenant_concurrency: Annotated[
        int | None, Field(ge=1, description="concurrent calls for tenants without a limit of their own")
    ] = None
    limits_on_trouble: Annotated[
        FailureMode,
        Field(description="what to do with calls while usage is unknown (Redis unavailable): admit or refuse"),
    ] = FailureMode.OPEN
    limits_timeout_s: Annotated[float, Field(gt=0, description="seconds to wait for Redis before usage is unknown")] = (
        0.25
    )


class AdmissionSettings(BaseModel):
    """Request queue"""

    max_running: Annotated[
        int,
        Field(
            ge=1,
            description="maximum concurrent requests of this orchestrator"
            " (divide the targets' capacity by the number of orchestrators)",
        ),
    ] = 64
    max_request_s: Annotated[
        float,
        Field(ge=1, description="seconds after which a request ends whose deadline is later, or that has none"),
    ] = 3600.0
    max_waiting: Annotated[int, Field(ge=0, description="maximum queued requests; tenants take turns")] = 1024
    max_requests_mib: Annotated[
        int, Field(ge=1, description="maximum memory of running and queued requests, MiB; further requests are refused")
    ] = 512
    max_answers_mib: Annotated[
        int,
        Field(
            ge=1,
            description="maximum memory of answers that are not sent or not read, MiB; above it presift ends answers"
            " whose callers do not read, first those of tenants with more than a quarter",
        ),
    ] = 256
