"""The protos: generated code is up to date, lint and breaking checks pass and detect planted faults."""

import importlib.resources
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc

from presift.v1 import errors_pb2

ROOT = Path(__file__).parents[2]
PROTOS, GENERATED = ROOT / "protos", ROOT / "services" / "presift" / "v1"
BUF = Path(sys.executable).parent / "buf"


def buf(*arguments):
    return subprocess.run([BUF, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def protos(tmp_path):
    """A copy of protos/ to plant faults in."""
    shutil.copytree(PROTOS, tmp_path / "protos")
    return tmp_path / "protos"


def plant(protos, name, old, new):
    path = protos / "presift" / "v1" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_generated_code_is_up_to_date(tmp_path):
    plugin = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    outs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    include = importlib.resources.files("grpc_tools") / "_proto"
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{include}",
            f"--plugin=protoc-gen-mypy_grpc={plugin}",
            *outs,
            f"--mypy_grpc_out=quiet:{tmp_path}",
            *map(str, sorted(PROTOS.rglob("*.proto"))),
        ]
    )
    assert code == 0
    made = {path.name: path.read_text() for path in (tmp_path / "presift" / "v1").iterdir()}
    held = {path.name: path.read_text() for path in GENERATED.iterdir() if path.is_file() and path.name in made}
    assert held == made
    strays = {path.name for path in GENERATED.iterdir() if path.is_file()} - made.keys() - {"__init__.py"}
    assert not strays


def test_protos_pass_lint_and_break_nothing():
    for arguments in (("lint", PROTOS), ("breaking", PROTOS, "--against", PROTOS / "released.binpb")):
        done = buf(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


BREAKING = {
    "field removed": ("draft.proto", "  bool include_importance = 5;\n", ""),
    "field renumbered": ("draft.proto", "bool include_importance = 5;", "bool include_importance = 9;"),
    "type changed": ("target.proto", "string cache_salt = 3;", "bytes cache_salt = 3;"),
    "enum value removed": ("plan.proto", "  ROUTE_SPEC_KV_PC = 5;\n", ""),
    "method renamed": ("orchestrator.proto", "rpc Explain(", "rpc Elucidate("),
}


@pytest.mark.parametrize("fault", BREAKING.values(), ids=BREAKING)
def test_a_breaking_change_is_detected(protos, fault):
    plant(protos, *fault)
    done = buf("breaking", protos, "--against", PROTOS / "released.binpb")
    assert done.returncode != 0 and fault[0] in done.stdout + done.stderr


def test_a_new_field_breaks_nothing(protos):
    plant(protos, "draft.proto", "  string cache_salt = 6;\n", "  string cache_salt = 6;\n  bool more = 7;\n")
    assert buf("breaking", protos, "--against", PROTOS / "released.binpb").returncode == 0


LINT = {
    "field name": ("plan.proto", "uint32 prompt_tokens = 1;", "uint32 promptTokens = 1;"),
    "enum zero": ("plan.proto", "  ROUTE_UNSPECIFIED = 0;", "  ROUTE_NONE = 0;"),
    "service name": ("draft.proto", "service DraftService", "service Drafting"),
    "no comment": ("plan.proto", "  // start is the first token of the range.\n", ""),
}


@pytest.mark.parametrize("fault", LINT.values(), ids=LINT)
def test_a_lint_fault_is_detected(protos, fault):
    plant(protos, *fault)
    done = buf("lint", protos)
    assert done.returncode != 0 and fault[0] in done.stdout


DECLARATION = re.compile(r"(?:message|enum|service|rpc|oneof) (\w+)|(?:[\w.]+ )*?(?:map<.*> )?(\w+) = \d+;")


@pytest.mark.parametrize("path", sorted(PROTOS.rglob("*.proto")), ids=lambda path: path.name)
def test_comments_start_with_the_name_and_methods_say_whether_to_retry(path):
    comment = []
    for line in map(str.strip, path.read_text().splitlines()):
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        if declared := DECLARATION.match(line):
            name = declared[1] or declared[2]
            assert re.match(rf"{name}\b", comment[0]), f"{line}: the comment starts with {comment[0]!r}"
            assert "etry" in " ".join(comment) or not line.startswith("rpc "), f"{line}: says nothing about retries"
        comment = []


@pytest.mark.parametrize(
    ("own", "googles"),
    [
        (errors_pb2.Status, status_pb2.Status),
        (errors_pb2.ErrorInfo, error_details_pb2.ErrorInfo),
        (errors_pb2.RetryInfo, error_details_pb2.RetryInfo),
    ],
)
def test_error_details_equal_googles(own, googles):
    assert fields_of(own) == fields_of(googles)


def fields_of(message):
    proto = descriptor_pb2.DescriptorProto()
    message.DESCRIPTOR.CopyToProto(proto)
    kinds = {field.name: field.type_name.replace("presift.v1", "google.rpc") for field in proto.field}
    return [(field.number, field.name, field.type, field.label, kinds[field.name]) for field in proto.field]


def test_the_status_table_has_every_error_reason():
    from presift.rpc.status import TABLE

    named = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()[1:]}
    assert {reason for _, _, reason in TABLE} == named
