# SPDX-License-Identifier: Apache-2.0
"""The generated protobuf modules for the host, imported when first used: together they cost some 55 ms of CPU.

`messages.agent.CreateContainerRequest(...)`, `messages.oci`, `.types`, `.health`, `.extension`, `.ttrpc`, `.status`.
"""

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from google.protobuf.message import Message

    from kata_wire.pb import agent_pb2 as agent
    from kata_wire.pb import extension_pb2 as extension
    from kata_wire.pb import health_pb2 as health
    from kata_wire.pb import oci_pb2 as oci
    from kata_wire.pb import status_pb2 as status
    from kata_wire.pb import ttrpc_pb2 as ttrpc
    from kata_wire.pb import types_pb2 as types

MODULES = ("agent", "extension", "health", "oci", "status", "ttrpc", "types")

__all__ = ["MODULES", "agent", "extension", "health", "message_class", "oci", "status", "ttrpc", "types"]


def __getattr__(name: str) -> object:
    if name not in MODULES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    module = importlib.import_module(f"kata_wire.pb.{name}_pb2")
    globals()[name] = module
    return module


def message_class(full_name: str) -> "type[Message]":
    """The class of a message by its full name, such as `grpc.CreateContainerRequest`. Raises KeyError."""
    from google.protobuf import empty_pb2  # noqa: F401  # its import registers google.protobuf.Empty
    from google.protobuf.descriptor_pool import Default
    from google.protobuf.message_factory import GetMessageClass

    for name in MODULES:
        importlib.import_module(f"kata_wire.pb.{name}_pb2")
    return GetMessageClass(Default().FindMessageTypeByName(full_name))
