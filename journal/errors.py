# SPDX-License-Identifier: Apache-2.0
"""Everything that can go wrong with a journal, as one family. Imports nothing: `journal.peek` raises these too.

Each error is one line (`str(error)`), may carry a `hint` that says what to do about it, and has the exit code that a
command should end with: 1 failed, 2 a wrong key, 3 not as expected, 5 damaged, 6 the chain or a signature does not hold,
7 pruned, 10 busy, 11 no space, 12 may not write.
"""


class JournalError(Exception):
    """Root of the family; raised itself only for a fault of the storage that has no class of its own."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidAppend(JournalError):
    """What was given to `append` can never be stored (too large, not JSON, an illegal name). Nothing was written."""


class VersionConflict(JournalError):
    """Somebody else appended to the stream first. Nothing was written; load the stream again and decide anew."""

    exit_code = 3

    def __init__(self, stream: str, expected_rev: int, actual_rev: int) -> None:
        super().__init__(
            f"stream `{stream}` is at rev `{actual_rev}`, expected `{expected_rev}`",
            hint="another writer was first: read the stream again and retry",
        )
        self.stream = stream
        self.expected_rev = expected_rev
        self.actual_rev = actual_rev


class RequirementFailed(JournalError):
    """A projection did not have the value that `requires` named. Nothing was written.

    `actual` is the value found, or None when the key is absent.
    """

    exit_code = 3

    def __init__(self, key: bytes, actual: bytes | None) -> None:
        found = "absent" if actual is None else f"another value of {len(actual)} bytes"
        super().__init__(f"projection `{key.decode(errors='backslashreplace')}` is not as required: it is {found}")
        self.key = key
        self.actual = actual


class JournalBusy(JournalError):
    """The writer lock was not free before the deadline. `holder_pid` is who holds it, as far as is known.

    `holder` is what is known of that process: its name, and that it is stopped, if it is.
    """

    exit_code = 10

    def __init__(self, path: str, waited_s: float, holder_pid: int | None, holder: str = "") -> None:
        who = "an unknown process" if holder_pid is None else f"process `{holder_pid}`"
        detail = f" ({holder})" if holder else ""
        super().__init__(
            f"journal `{path}` is locked by {who}{detail}, gave up after {waited_s:.1f} s",
            hint="a writer that is stopped or frozen holds the lock until it continues or is killed",
        )
        self.path = path
        self.waited_s = waited_s
        self.holder_pid = holder_pid
        self.holder = holder


class JournalMissing(JournalError, FileNotFoundError):
    """There is no journal in that directory (also a FileNotFoundError, for callers who know no more than that)."""


class StreamMissing(JournalError):
    """There is no stream of that name."""


class JournalReadOnly(JournalError):
    """The journal was opened for reading, or lies where this process may not write."""

    exit_code = 12


class JournalDiskFull(JournalError):
    """No space for the append. Nothing was written, everything written before is intact; free space and retry."""

    exit_code = 11


class JournalDamaged(JournalError):
    """Stored bytes do not say what they must, or the file is no journal. `seq` is the record, when one is known."""

    exit_code = 5

    def __init__(self, message: str, *, seq: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or "`verify` names every damaged record")
        self.seq = seq


class JournalForeign(JournalError):
    """The journal belongs to another owner: it can be read, but not written."""

    exit_code = 12


class ChainBroken(JournalError):
    """The journal does not continue a head that was kept elsewhere, or a signature does not hold."""

    exit_code = 6


class JournalPruned(JournalError):
    """What was asked for was pruned: a tombstone accounts for it, and it cannot be read any more."""

    exit_code = 7


class JournalVersionError(JournalError):
    """The journal was written by a newer version of this package than the one that reads it."""

    exit_code = 5


class JournalInUse(JournalError):
    """This process has the journal open already, or inherited it by fork; LMDB allows neither."""
