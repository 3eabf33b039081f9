from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Route(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUTE_UNSPECIFIED: _ClassVar[Route]
    ROUTE_AUTO: _ClassVar[Route]
    ROUTE_FULL: _ClassVar[Route]
    ROUTE_SPEC_PC: _ClassVar[Route]
    ROUTE_SPEC_KV: _ClassVar[Route]
    ROUTE_SPEC_KV_PC: _ClassVar[Route]

class Pool(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POOL_UNSPECIFIED: _ClassVar[Pool]
    POOL_NONE: _ClassVar[Pool]
    POOL_MAX: _ClassVar[Pool]
    POOL_MEAN: _ClassVar[Pool]

class Reduction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REDUCTION_UNSPECIFIED: _ClassVar[Reduction]
    REDUCTION_MAX: _ClassVar[Reduction]
    REDUCTION_SUM: _ClassVar[Reduction]

class ScoredHeads(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORED_HEADS_UNSPECIFIED: _ClassVar[ScoredHeads]
    SCORED_HEADS_ALL: _ClassVar[ScoredHeads]
    SCORED_HEADS_CALIBRATED: _ClassVar[ScoredHeads]

class KvSelection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KV_SELECTION_UNSPECIFIED: _ClassVar[KvSelection]
    KV_SELECTION_TARGET_LOOKAHEAD: _ClassVar[KvSelection]
    KV_SELECTION_DRAFT_MASK: _ClassVar[KvSelection]
ROUTE_UNSPECIFIED: Route
ROUTE_AUTO: Route
ROUTE_FULL: Route
ROUTE_SPEC_PC: Route
ROUTE_SPEC_KV: Route
ROUTE_SPEC_KV_PC: Route
POOL_UNSPECIFIED: Pool
POOL_NONE: Pool
POOL_MAX: Pool
POOL_MEAN: Pool
REDUCTION_UNSPECIFIED: Reduction
REDUCTION_MAX: Reduction
REDUCTION_SUM: Reduction
SCORED_HEADS_UNSPECIFIED: ScoredHeads
SCORED_HEADS_ALL: ScoredHeads
SCORED_HEADS_CALIBRATED: ScoredHeads
KV_SELECTION_UNSPECIFIED: KvSelection
KV_SELECTION_TARGET_LOOKAHEAD: KvSelection
KV_SELECTION_DRAFT_MASK: KvSelection

class Span(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class TokenMask(_message.Message):
    __slots__ = ("prompt_tokens", "kept")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    kept: bytes
    def __init__(self, prompt_tokens: _Optional[int] = ..., kept: _Optional[bytes] = ...) -> None: ...

class KvMask(_message.Message):
    __slots__ = ("layers", "kv_heads", "prompt_tokens", "kept")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    layers: int
    kv_heads: int
    prompt_tokens: int
    kept: bytes
    def __init__(self, layers: _Optional[int] = ..., kv_heads: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., kept: _Optional[bytes] = ...) -> None: ...

class Adaptive(_message.Message):
    __slots__ = ("coverage", "min_capacity", "step")
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    MIN_CAPACITY_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    coverage: float
    min_capacity: int
    step: int
    def __init__(self, coverage: _Optional[float] = ..., min_capacity: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class SpecPc(_message.Message):
    __slots__ = ("capacity", "window", "pool", "kernel", "neighbors", "reduction", "start_layer", "weighted_query", "lookahead_tokens", "adaptive", "heads")
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    NEIGHBORS_FIELD_NUMBER: _ClassVar[int]
    REDUCTION_FIELD_NUMBER: _ClassVar[int]
    START_LAYER_FIELD_NUMBER: _ClassVar[int]
    WEIGHTED_QUERY_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ADAPTIVE_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    capacity: int
    window: int
    pool: Pool
    kernel: int
    neighbors: int
    reduction: Reduction
    start_layer: int
    weighted_query: bool
    lookahead_tokens: int
    adaptive: Adaptive
    heads: ScoredHeads
    def __init__(self, capacity: _Optional[int] = ..., window: _Optional[int] = ..., pool: _Optional[_Union[Pool, str]] = ..., kernel: _Optional[int] = ..., neighbors: _Optional[int] = ..., reduction: _Optional[_Union[Reduction, str]] = ..., start_layer: _Optional[int] = ..., weighted_query: _Optional[bool] = ..., lookahead_tokens: _Optional[int] = ..., adaptive: _Optional[_Union[Adaptive, _Mapping]] = ..., heads: _Optional[_Union[ScoredHeads, str]] = ...) -> None: ...

class SpecKv(_message.Message):
    __slots__ = ("capacity", "window", "pool", "kernel", "reduction", "lookahead_tokens", "selection", "mask", "adaptive", "renew_every", "renew_window", "first_full_tokens")
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    REDUCTION_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    ADAPTIVE_FIELD_NUMBER: _ClassVar[int]
    RENEW_EVERY_FIELD_NUMBER: _ClassVar[int]
    RENEW_WINDOW_FIELD_NUMBER: _ClassVar[int]
    FIRST_FULL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    capacity: int
    window: int
    pool: Pool
    kernel: int
    reduction: Reduction
    lookahead_tokens: int
    selection: KvSelection
    mask: SpecPc
    adaptive: Adaptive
    renew_every: int
    renew_window: int
    first_full_tokens: int
    def __init__(self, capacity: _Optional[int] = ..., window: _Optional[int] = ..., pool: _Optional[_Union[Pool, str]] = ..., kernel: _Optional[int] = ..., reduction: _Optional[_Union[Reduction, str]] = ..., lookahead_tokens: _Optional[int] = ..., selection: _Optional[_Union[KvSelection, str]] = ..., mask: _Optional[_Union[SpecPc, _Mapping]] = ..., adaptive: _Optional[_Union[Adaptive, _Mapping]] = ..., renew_every: _Optional[int] = ..., renew_window: _Optional[int] = ..., first_full_tokens: _Optional[int] = ...) -> None: ...

class SpecKvPc(_message.Message):
    __slots__ = ("prompt", "kv")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    prompt: SpecPc
    kv: SpecKv
    def __init__(self, prompt: _Optional[_Union[SpecPc, _Mapping]] = ..., kv: _Optional[_Union[SpecKv, _Mapping]] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("spec_pc", "spec_kv", "spec_kv_pc")
    SPEC_PC_FIELD_NUMBER: _ClassVar[int]
    SPEC_KV_FIELD_NUMBER: _ClassVar[int]
    SPEC_KV_PC_FIELD_NUMBER: _ClassVar[int]
    spec_pc: SpecPc
    spec_kv: SpecKv
    spec_kv_pc: SpecKvPc
    def __init__(self, spec_pc: _Optional[_Union[SpecPc, _Mapping]] = ..., spec_kv: _Optional[_Union[SpecKv, _Mapping]] = ..., spec_kv_pc: _Optional[_Union[SpecKvPc, _Mapping]] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("id", "revision", "tokenizer_fingerprint", "context_tokens", "layers", "kv_heads", "vocabulary_size", "head_profile", "all_layers")
    ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    HEAD_PROFILE_FIELD_NUMBER: _ClassVar[int]
    ALL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    revision: str
    tokenizer_fingerprint: str
    context_tokens: int
    layers: int
    kv_heads: int
    vocabulary_size: int
    head_profile: str
    all_layers: int
    def __init__(self, id: _Optional[str] = ..., revision: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ..., context_tokens: _Optional[int] = ..., layers: _Optional[int] = ..., kv_heads: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., head_profile: _Optional[str] = ..., all_layers: _Optional[int] = ...) -> None: ...
