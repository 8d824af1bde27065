# SPDX-License-Identifier: Apache-2.0
"""What only the guest needs, and may hold secrets: kept in a file of the run directory until the guest has it."""

from __future__ import annotations

import json
import os

from kata_fsm.machines.vocab import Facts


class Kept:
    """What only the guest needs, in a file of its own for each request: a refused one touches nobody else's."""

    def __init__(self, run_directory: str, name: str, value: Facts) -> None:
        directory = run_directory + "/specs"
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self.path = f"{directory}/{name}.json"
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(json.dumps(value))  # in C, as `json.dump` is not

    def drop(self) -> None:
        """Forget it."""
        try:
            os.unlink(self.path)
        except OSError:
            pass  # removed with the run directory at the latest
