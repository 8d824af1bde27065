# SPDX-License-Identifier: Apache-2.0
"""Goal: what is committed is what the .proto files say, and the guest's part stays cheap to import."""

import pathlib
import subprocess
import sys

import pytest

import kata_wire
from kata_wire import generate, messages, methods, schema

PACKAGE = pathlib.Path(kata_wire.__file__).parent
GUEST_MODULES = ("envelope", "errors", "methods", "schema", "session", "spec", "table", "ttrpc")


def test_regenerating_gives_identical_files(tmp_path):
    generate.generate(tmp_path)
    made = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    kept = {name: (PACKAGE / name).read_text() for name in made}
    assert made == kept
    committed = {f"pb/{path.name}" for path in (PACKAGE / "pb").iterdir() if path.is_file()}
    assert committed == {name for name in made if name.startswith("pb/")}


def test_every_call_names_messages_of_the_schema():
    for service, calls in methods.METHODS.items():
        for method, pair in calls.items():
            assert set(pair) <= set(schema.MESSAGES), f"{service}/{method}"
    assert methods.find("grpc.Health", "Check") == ("grpc.CheckRequest", "grpc.HealthCheckResponse")
    assert methods.find("grpc.Health", "Nothing") is None
    assert methods.find("nobody", "Check") is None


def test_the_schema_has_every_message_and_enum_of_the_generated_modules():
    for name, rows in schema.MESSAGES.items():
        if name.endswith("Entry"):
            continue
        fields = messages.message_class(name).DESCRIPTOR.fields
        assert [(row[0], row[1]) for row in rows] == sorted((field.number, field.name) for field in fields)
    assert dict(schema.ENUMS["grpc.HealthCheckResponse.ServingStatus"]) == {
        "UNKNOWN": 0,
        "SERVING": 1,
        "NOT_SERVING": 2,
    }


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("grpc.CreateContainerRequest", {"container_id": 1, "storages": 5, "OCI": 6, "sandbox_pidns": 7}),
        ("grpc.CreateSandboxRequest", {"hostname": 1, "storages": 3, "sandbox_id": 5, "kernel_modules": 7}),
        ("grpc.ReseedRandomDevRequest", {"data": 2}),
        ("grpc.TtyWinResizeRequest", {"row": 3, "column": 4}),
        ("grpc.Storage", {"driver": 1, "mount_point": 6, "fs_group": 7, "shared": 8}),
        ("grpc.Spec", {"Version": 1, "Linux": 8, "raw_json": 1000}),
        ("types.Interface", {"device": 1, "IPAddresses": 3, "hwAddr": 5, "raw_flags": 8}),
        ("ttrpc.Request", {"service": 1, "method": 2, "payload": 3, "timeout_nano": 4, "metadata": 5}),
    ],
)
def test_numbers_are_the_ones_of_the_kata_agent(message, fields):
    numbers = {row[1]: row[0] for row in schema.MESSAGES[message]}
    assert {name: numbers[name] for name in fields} == fields


def test_the_guest_modules_import_nothing_but_themselves():
    program = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1])\n"
        + "".join(f"import kata_wire.{name}\n" for name in GUEST_MODULES)
        + "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(PACKAGE.parent)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["kata_wire", *(f"kata_wire.{name}" for name in GUEST_MODULES)]


def test_messages_imports_nothing_until_it_is_asked():
    program = (
        "import sys; from kata_wire import messages\n"
        "assert not [name for name in sys.modules if name.startswith('google.protobuf')]\n"
        "messages.health.CheckRequest(service='x')\n"
        "assert 'kata_wire.pb.agent_pb2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PACKAGE.parent)
    with pytest.raises(AttributeError, match="has no attribute `nothing`"):
        _ = messages.nothing  # type: ignore[attr-defined]
