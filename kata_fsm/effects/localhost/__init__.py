# SPDX-License-Identifier: Apache-2.0
"""The guest's `localhost` at that of the pod's network namespace on the host."""
