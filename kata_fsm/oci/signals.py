# SPDX-License-Identifier: Apache-2.0
"""Signals by name or number, as `kill` takes them."""

from kata_fsm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # what `signal` wraps in enums, which take 4 ms to import

NUMBER_MAX = 64


def number_of(word: str) -> int:
    """The number of `KILL`, `SIGKILL`, `sigkill`, `9`, `RTMIN+3`, ... Raises `UsageError` in Kata's words."""
    if word.isascii() and word.isdigit():
        number = int(word)
        if number <= NUMBER_MAX:
            return number
        raise UsageError(
            f"Signal {word} is not supported", hint=f"legal are 0 to {NUMBER_MAX} and names like `SIGTERM`"
        )
    name = word.upper().removeprefix("SIG")
    base, sign, offset = _split_offset(name)
    found = getattr(_signal, "SIG" + base, None) if base and base.isalnum() else None
    if not isinstance(found, int) or not (base in ("RTMIN", "RTMAX") or not sign):
        raise UsageError(f"Signal {word} is not supported", hint="legal are numbers and names like `SIGTERM`")
    number = found + (offset if sign == "+" else -offset)
    if not 0 < number <= NUMBER_MAX:
        raise UsageError(f"Signal {word} is not supported", hint="out of range")
    return number


def _split_offset(name: str) -> tuple[str, str, int]:
    for sign in "+-":
        base, found, offset = name.partition(sign)
        if found and offset.isdigit():
            return base, sign, int(offset)
    return name, "", 0
