# SPDX-License-Identifier: Apache-2.0
"""The one clock of this package. It measures how long a lock was waited for; it is never written into a record."""

import time


class Clock:
    """Monotonic time and sleep, together so that a test can stand in for both."""

    def monotonic_s(self) -> float:
        """Seconds since some fixed point."""
        return time.monotonic()  # noqa: TID251 - this package is below the door that the rule protects

    def sleep(self, seconds: float) -> None:
        """Let others run for so long."""
        time.sleep(seconds)


CLOCK = Clock()
