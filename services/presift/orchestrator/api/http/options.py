"""presift's own options, by the names that the protos have: a new field of these messages is an option here at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from presift.core.errors import InvalidRequest
from presift.core.limits import MAX_STOP_TOKEN_IDS
from presift.orchestrator.api.http.parameters import brief
from presift.orchestrator.api.http.schema import Options
from presift.v1 import orchestrator_pb2, plan_pb2, target_pb2

M = TypeVar("M", bound=Message)
# Of Sampling, what OpenAI's own parameters do not say.
_SAMPLING = ("top_k", "stop_token_ids", "ignore_eos")
_KINDS = {
    FieldDescriptor.CPPTYPE_BOOL: "bool",
    FieldDescriptor.CPPTYPE_UINT32: "uint32 (0 to 4294967295)",
    FieldDescriptor.CPPTYPE_UINT64: "uint64",
    FieldDescriptor.CPPTYPE_FLOAT: "number",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
}
_ROUTE = orchestrator_pb2.GenerateRequest.DESCRIPTOR.fields_by_name["route"]


def budget_of(options: Options) -> orchestrator_pb2.Budget:
    """Raises InvalidRequest, as the next ones, naming the option."""
    return _filled(orchestrator_pb2.Budget(), options.budget, "presift.budget")


def kv_of(options: Options) -> orchestrator_pb2.KvOptions:
    return _filled(orchestrator_pb2.KvOptions(), options.kv, "presift.kv")


def sampling_of(options: Options) -> target_pb2.Sampling:
    return _filled(target_pb2.Sampling(), options.sampling, "presift.sampling", _SAMPLING)


def spans_of(options: Options) -> list[plan_pb2.Span]:
    spans = options.protected_spans or ()
    return [_filled(plan_pb2.Span(), each, f"presift.protected_spans[{at}]") for at, each in enumerate(spans)]


def route_of(options: Options) -> int:
    """The number on the wire; AUTO where none is named."""
    return plan_pb2.ROUTE_AUTO if options.route is None else _number(_ROUTE.enum_type, options.route, "presift.route")


def _filled(message: M, values: Mapping[str, Any] | None, path: str, names: Iterable[str] = ()) -> M:
    """`message` with `values` by field name; of `names` alone, where there are any."""
    fields = {field.name: field for field in message.DESCRIPTOR.fields}
    allowed = tuple(names) or tuple(fields)
    for name, value in (values or {}).items():
        where = f"{path}.{name[:64]}"
        if name not in allowed:
            raise InvalidRequest(where, "given", f"one of {', '.join(allowed)}")
        if value is not None:
            _fill(message, fields[name], value, where)
    return message


def _fill(message: Message, field: FieldDescriptor, value: Any, where: str) -> None:
    if field.message_type is not None and not field.is_repeated:
        if not isinstance(value, dict):
            raise InvalidRequest(where, brief(value), "an object")
        part = getattr(message, field.name)
        part.SetInParent()  # an empty one is one, too
        _filled(part, value, where)
        return
    # Neither is to be converted, or put into words, before it is refused.
    if field.is_repeated and isinstance(value, list) and len(value) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequest(where, f"{len(value)} values", f"at most {MAX_STOP_TOKEN_IDS}")
    if not field.is_repeated and isinstance(value, list | dict):
        raise InvalidRequest(where, brief(value), _KINDS.get(field.cpp_type, "of another type"))
    if field.enum_type is not None:
        value = _number(field.enum_type, value, where)
    try:
        json_format.ParseDict({field.name: value}, message)
    except json_format.ParseError:  # its text quotes the value
        raise InvalidRequest(where, brief(value), _KINDS.get(field.cpp_type, "of another type")) from None


def _number(kind: EnumDescriptor, value: Any, where: str) -> int:
    """Of a name as the client says it (`spec_pc`) or as the protos do (`ROUTE_SPEC_PC`)."""
    prefix = kind.values[0].name.removesuffix("UNSPECIFIED")
    named = {each.name.removeprefix(prefix).lower(): int(each.number) for each in kind.values[1:]}
    name = value.removeprefix(prefix).lower() if isinstance(value, str) else ""
    if name not in named:
        raise InvalidRequest(where, brief(value), f"one of {', '.join(named)}")
    return named[name]
