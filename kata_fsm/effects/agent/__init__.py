# SPDX-License-Identifier: Apache-2.0
"""Effects in the guest, by way of its agent: the connection, the sandbox, containers and processes."""
