# SPDX-License-Identifier: Apache-2.0
"""Every error family of the host side, each with its exit code, in one file.

There are four families: the caller's mistake, the world's fault (host, guest or peer), damaged data, and our own bug.
A message is one line: lower case, no full stop, values in backquotes. `hint` says what to do about it. Messages that
container engines match by text keep the engines' spelling (containerd's go-runc, podman).

This module is imported on the hot path of `state` and `list`: it imports nothing.
"""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_ILLEGAL = 3
EXIT_DIVERGENCE = 4
EXIT_DAMAGED = 5
EXIT_CHAIN = 6
EXIT_GAP = 7
EXIT_CURSOR = 8
EXIT_PENDING = 9
EXIT_BUSY = 10  # the journal's: who writes to it did not let go in time
EXIT_NO_SPACE = 11
EXIT_READ_ONLY = 12  # it may not be written here, or belongs to another host


class KataFsmError(Exception):
    """Root of all errors that a user may see. `str(error)` is the one-line message."""

    exit_code = EXIT_FAILED
    family = "bug"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_wire(self) -> dict[str, object]:
        """The form in which the supervisor sends an error to a verb."""
        return {"family": self.family, "message": self.message, "hint": self.hint, "exit": self.exit_code}


class CallerError(KataFsmError):
    """The caller asked for something that cannot be."""

    family = "caller"


class UsageError(CallerError):
    """The command line itself is wrong."""

    exit_code = EXIT_FAILED  # runc and Kata exit 1, and engines only know that
    family = "usage"


class SpecError(CallerError):
    """`config.json` is missing or malformed, or asks for what the guest cannot give."""

    family = "spec"


class NotFoundError(CallerError):
    """No such container, sandbox or process."""

    family = "not_found"


class IllegalTransition(CallerError):
    """The machine's table has no such transition: nothing was changed, nothing was contacted.

    `machine`, `subject`, `state`, `trigger` and `legal` are kept apart for programs that want to look.
    """

    family = "illegal"

    def __init__(
        self,
        machine: str,
        subject: str,
        state: str,
        trigger: str,
        legal: tuple[str, ...],
        *,
        message: str | None = None,
    ) -> None:
        allowed = ", ".join(f"`{name}`" for name in legal) or "nothing"
        text = f"{machine} `{subject}` is `{state}`: `{trigger}` is not legal, legal is {allowed}"
        super().__init__(text if message is None else f"{message} ({text})")
        self.machine = machine
        self.subject = subject
        self.state = state
        self.trigger = trigger
        self.legal = legal
        self._told = message

    def with_legal(self, legal: tuple[str, ...]) -> "IllegalTransition":
        """The same refusal, with what is legal in other words."""
        return IllegalTransition(self.machine, self.subject, self.state, self.trigger, legal, message=self._told)


class WorldError(KataFsmError):
    """The host, the guest or a peer failed us."""

    family = "world"


class EffectError(WorldError):
    """An effect on the host or in the guest failed.

    `phase` names the step inside the effect, `evidence` is JSON-able detail for the journal (log tails, errno, limits).
    """

    family = "effect"
    refused = False
    """Whether somebody who must know said that it was not done. Otherwise it may have been, and only the answer was lost."""

    def __init__(
        self, phase: str, message: str, *, evidence: dict[str, object] | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.phase = phase
        self.evidence = evidence or {}


class TimeoutExceeded(EffectError):
    """An effect did not finish within its limit; the message says which phase and how long each took."""

    family = "timeout"


class SupervisorGone(WorldError):
    """The sandbox's supervisor could not be reached or ended while it was asked."""

    family = "supervisor"


class SupervisorUnread(SupervisorGone):
    """It ended before it had read what it was asked: nothing came of it, and the next one can be asked the same."""


class SupervisorSilent(SupervisorGone):
    """It is there, and did not answer in time."""


class DamagedData(KataFsmError):
    """Stored data does not say what it must."""

    exit_code = EXIT_DAMAGED
    family = "damaged"


class Bug(KataFsmError):
    """A broken invariant of ours. Please report it, with the sandbox's replay."""

    family = "bug"


class RemoteError(KataFsmError):
    """An error that the supervisor reported, rebuilt on the verb's side."""

    def __init__(self, wire: dict[str, object]) -> None:
        hint = wire.get("hint")
        super().__init__(str(wire.get("message", "unknown error")), hint=hint if isinstance(hint, str) else None)
        self.family = str(wire.get("family", "world"))
        code = wire.get("exit", EXIT_FAILED)
        self.exit_code = code if isinstance(code, int) else EXIT_FAILED
