"""The wire contract: documented throughout, named in one style, and what the code says it is."""

import re
import subprocess
import sys
from pathlib import Path

import google.rpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from hiddenstate_server import errors as server_errors

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto/hiddenstate/v1/hiddenstate.proto"


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    """The contract as protoc reads it, comments included."""
    out = tmp_path_factory.mktemp("proto") / "contract.bin"
    includes = [f"-Ihiddenstate_proto={PROTO.parent}", f"-I{Path(google.rpc.__path__[0]).parents[1]}"]
    protoc = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", "--include_source_info", f"-o{out}"]
    subprocess.run([*protoc, *includes, "hiddenstate_proto/hiddenstate.proto"], check=True)
    return FileDescriptorSet.FromString(out.read_bytes()).file[0]


def test_every_declaration_is_documented(described: FileDescriptorProto) -> None:
    commented = {tuple(place.path) for place in described.source_code_info.location if place.leading_comments}
    declared: dict[tuple[int, ...], str] = {}
    for i, message in enumerate(described.message_type):
        declared[4, i] = message.name
        declared |= {(4, i, 2, j): f"{message.name}.{field.name}" for j, field in enumerate(message.field)}
    for i, enum in enumerate(described.enum_type):
        declared[5, i] = enum.name
        declared |= {(5, i, 2, j): value.name for j, value in enumerate(enum.value)}
    for i, service in enumerate(described.service):
        declared[6, i] = service.name
        declared |= {(6, i, 2, j): f"{service.name}.{method.name}" for j, method in enumerate(service.method)}
    assert [name for path, name in declared.items() if path not in commented] == []


def test_methods_own_their_requests_and_responses(described: FileDescriptorProto) -> None:
    for method in described.service[0].method:
        assert method.input_type == f".hiddenstate.v1.{method.name}Request"
        assert method.output_type == f".hiddenstate.v1.{method.name}Response"


def test_enum_values_carry_their_enum_and_start_unspecified(described: FileDescriptorProto) -> None:
    for enum in described.enum_type:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
        assert enum.value[0].name == f"{prefix}_UNSPECIFIED"
        assert all(value.name.startswith(f"{prefix}_") for value in enum.value)


def test_the_table_of_reasons_is_what_the_server_answers_with() -> None:
    table = dict(re.findall(r"^//   ([A-Z_]+) +([A-Z_]+) ", PROTO.read_text(), flags=re.MULTILINE))
    kinds = [kind for kind in vars(server_errors).values() if isinstance(kind, type)]
    answers = {kind.reason: kind.code.name for kind in kinds if issubclass(kind, server_errors.ServerError)}
    assert answers == table
