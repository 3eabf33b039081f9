"""The Python client of presift. It depends on grpcio, protobuf and `presift.v1` only."""

from presift_client.answers import Delta, TokenLogprob, ToolCall
from presift_client.async_client import AsyncClient
from presift_client.channels import TlsOptions
from presift_client.client import Client
from presift_client.documents import document_parts
from presift_client.errors import (
    BudgetExceeded,
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    PresiftError,
    PromptTooLong,
    RouteUnsupported,
    Unauthenticated,
    Unavailable,
)
from presift_client.explanation import ExplainedSpan, Explanation, KvMask
from presift_client.forecasts import RouteForecast, StageSpeed
from presift_client.results import Choice, Decision, Generation, Info, Model, PolicyFile, Replica, RouteQuality, Usage

__all__ = [
    "AsyncClient",
    "BudgetExceeded",
    "Cancelled",
    "Choice",
    "Client",
    "DeadlineExceeded",
    "Decision",
    "Delta",
    "ExplainedSpan",
    "Explanation",
    "Generation",
    "Info",
    "InternalError",
    "InvalidRequest",
    "KvMask",
    "Model",
    "Overloaded",
    "PermissionDenied",
    "PolicyFile",
    "PresiftError",
    "PromptTooLong",
    "Replica",
    "RouteForecast",
    "RouteQuality",
    "RouteUnsupported",
    "StageSpeed",
    "TlsOptions",
    "TokenLogprob",
    "ToolCall",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "document_parts",
]
