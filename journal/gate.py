# SPDX-License-Identifier: Apache-2.0
"""Any number of transactions, or one resize of the map; a resize that waits goes before new transactions."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """`enter` and `leave` surround a transaction, `exclusive` a resize."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside = 0
        self._closed = False

    def enter(self) -> None:
        """Begin a transaction; waits while the map is resized."""
        with self._lock:
            while self._closed:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        """End it."""
        with self._lock:
            self._inside -= 1
            if self._closed:  # nobody else waits for it
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Alone, for the body."""
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._closed = True
            try:
                self._changed.wait_for(lambda: self._inside == 0)
                yield
            finally:
                self._closed = False
                self._changed.notify_all()
