# SPDX-License-Identifier: Apache-2.0
"""What host and guest say to each other: ttrpc frames, the agent's messages, and the session on a serial port.

The guest imports `ttrpc`, `session`, `table`, `schema`, `methods`, `envelope` and `spec`, which need nothing but
builtins, because every import costs tens of milliseconds in an emulated guest. The host uses the protobuf library
through `messages`.
"""
