# SPDX-License-Identifier: Apache-2.0
"""kata-fsm: an OCI runtime whose sandboxes are state machines over an event log.

Importing this package imports nothing else: the command line's hot path depends on it.
"""

__version__ = "0.1.0"
OCI_VERSION = "1.0.2-dev"  # of the runtime specification, as Kata says it
