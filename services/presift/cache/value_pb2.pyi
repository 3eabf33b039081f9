from presift.v1 import plan_pb2 as _plan_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CachedPrompt(_message.Message):
    __slots__ = ("token_mask", "lookahead_token_ids", "coverage", "draft", "kv_capacity", "kv_coverage", "trace_id", "span_id")
    TOKEN_MASK_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    KV_CAPACITY_FIELD_NUMBER: _ClassVar[int]
    KV_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    token_mask: _plan_pb2.TokenMask
    lookahead_token_ids: _containers.RepeatedScalarFieldContainer[int]
    coverage: float
    draft: _plan_pb2.ModelInfo
    kv_capacity: int
    kv_coverage: float
    trace_id: bytes
    span_id: bytes
    def __init__(self, token_mask: _Optional[_Union[_plan_pb2.TokenMask, _Mapping]] = ..., lookahead_token_ids: _Optional[_Iterable[int]] = ..., coverage: _Optional[float] = ..., draft: _Optional[_Union[_plan_pb2.ModelInfo, _Mapping]] = ..., kv_capacity: _Optional[int] = ..., kv_coverage: _Optional[float] = ..., trace_id: _Optional[bytes] = ..., span_id: _Optional[bytes] = ...) -> None: ...
