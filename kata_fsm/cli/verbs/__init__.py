# SPDX-License-Identifier: Apache-2.0
"""The verbs. Each module has `run(context, argv) -> int`, where `argv` is what follows the verb."""
