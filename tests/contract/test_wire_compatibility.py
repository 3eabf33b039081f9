"""The wire does not change: the released protos and today's generated code read each other's messages without loss."""

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass

from presift.v1 import draft_pb2, errors_pb2, orchestrator_pb2, plan_pb2, target_pb2

TODAY = (draft_pb2, errors_pb2, orchestrator_pb2, plan_pb2, target_pb2)
RELEASED = Path(__file__).parents[2] / "protos" / "released.binpb"
FILES = descriptor_pb2.FileDescriptorSet.FromString(RELEASED.read_bytes())
PRESIFT = [file for file in FILES.file if file.package == "presift.v1"]
NAMES = [f"presift.v1.{message.name}" for file in PRESIFT for message in file.message_type]
# Enough for each member of a oneof and each value of an enum in a message.
VARIANTS = range(16)


def pool_of(files):
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


def released(name, files=FILES):
    return GetMessageClass(pool_of(files).FindMessageTypeByName(name))


def today(name):
    return GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))


def filled(message, variant):
    """`message` with a value in every field. Variant 0 has zeros, so that presence is compared too."""
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof is None or oneof.fields[variant % len(oneof.fields)] is field:
            fill(message, field, variant)
    return message


def fill(message, field, variant):
    if field.message_type and field.message_type.GetOptions().map_entry:
        entry = filled(GetMessageClass(field.message_type)(), variant)
        getattr(message, field.name)[entry.key] = entry.value
    elif field.message_type:
        held = getattr(message, field.name)
        held = held.add() if field.is_repeated else held
        held.SetInParent()
        filled(held, variant)
    elif field.is_repeated:
        getattr(message, field.name).extend(value(field, each) for each in (variant, variant + 1))
    else:
        setattr(message, field.name, value(field, variant))


def value(field, variant):
    if field.enum_type:
        return field.enum_type.values[variant % len(field.enum_type.values)].number
    number = variant * field.number
    texts = {field.TYPE_STRING: f"{number}" if number else "", field.TYPE_BYTES: bytes([number % 256] * (number % 5))}
    return texts.get(field.type, bool(number) if field.type == field.TYPE_BOOL else number)


def check(old, new):
    """Raises AssertionError if a field is lost, or arrives under another name or with another value."""
    for variant in VARIANTS:
        sent = filled(old(), variant)
        read = new.FromString(sent.SerializeToString())
        assert str(read) == str(sent)  # by field names
        assert old.FromString(read.SerializeToString()) == sent
        # Fields that are newer than the release are unknown to its reader, and kept.
        sent = filled(new(), variant)
        assert new.FromString(old.FromString(sent.SerializeToString()).SerializeToString()) == sent


@pytest.mark.parametrize("name", NAMES)
def test_released_and_todays_code_read_each_others_messages(name):
    check(released(name), today(name))


@pytest.mark.parametrize("change", [{"number": 99}, {"type": 7}, {"name": "held_tokens"}], ids=str)
def test_a_changed_field_is_detected(change):
    files = descriptor_pb2.FileDescriptorSet.FromString(RELEASED.read_bytes())
    (decision,) = (each for file in files.file for each in file.message_type if each.name == "Decision")
    (field,) = (each for each in decision.field if each.name == "kept_tokens")
    field.MergeFrom(descriptor_pb2.FieldDescriptorProto(**change))
    with pytest.raises(AssertionError):
        check(released("presift.v1.Decision", files), today("presift.v1.Decision"))


def test_released_methods_have_the_same_paths_types_and_streaming():
    services = {name: service for module in TODAY for name, service in module.DESCRIPTOR.services_by_name.items()}
    for service in (service for file in PRESIFT for service in file.service):
        now = descriptor_pb2.ServiceDescriptorProto()
        services[service.name].CopyToProto(now)
        assert all(method in now.method for method in service.method)
