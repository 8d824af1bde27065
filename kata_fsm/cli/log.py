# SPDX-License-Identifier: Apache-2.0
"""Lines in the host's log and in `--log`, there in the shapes that engines parse.

containerd reads `log.json` and shows the `msg` of the last line whose level is `error`. Text is logrus's: `key=value`,
quoted where needed.
"""

import os
import time

from kata_fsm import cjson
from kata_fsm.cli.context import Context
from kata_fsm.world import WORLD

_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._/@^+")


def rfc3339(wall_ns: int) -> str:
    """Nanoseconds since the epoch as `2026-11-23T11:02:07.000000001Z`."""
    seconds, nanoseconds = divmod(wall_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"


def _bare(value: object) -> str:
    text = str(value)
    return text if text and all(character in _BARE for character in text) else cjson.quote(text)


_SECRETS = ("password", "passwd", "secret", "token", "api_key", "apikey", "authorization", "credential")


def redacted(message: str) -> str:
    """`message` without the values of what is called a password, token or the like: `token=***`."""
    lower = message.lower()
    if not any(word in lower for word in _SECRETS):
        return message
    import re

    names = "|".join(_SECRETS)
    return re.sub(rf"(?i)([\w-]*(?:{names})[\w-]*[\"']?\s*[=:]\s*(?:bearer\s+|basic\s+)?)[^\s,;`]+", r"\1***", message)


def subject(context: Context, level: str) -> "dict[str, object]":
    """What a line belongs to, as far as it is known: container, sandbox, and the seq of the record that holds what was asked
    (which the supervisor's reply tells; when there was none, the journal is searched for it, if something went wrong)."""
    found: dict[str, object] = {}
    if context.container:
        found["container"] = context.container
    if context.stream:
        found["sandbox"] = context.stream.rpartition("@")[0]
    seq = context.seq or (_seq(context.stream) if context.asked and level == "error" else 0)
    if seq:
        found["seq"] = seq
    return found


def _seq(stream: str) -> int:
    """The seq of the record that holds this process's command, or 0. Only asked when something went wrong."""
    from journal import Journal, JournalError
    from kata_fsm.world import journal_dir

    try:
        with Journal.open(journal_dir(), read_only=True) as journal:
            first = max(1, journal.rev(stream) - _LOOK_BACK)
            for record in journal.read_stream(stream, from_rev=first, reverse=True):
                if record.actor and record.actor.get("cli_pid") == os.getpid():
                    return record.seq
    except (OSError, JournalError):
        pass
    return 0


_LOOK_BACK = 200


def line(context: Context, level: str, message: str, about: "dict[str, object] | None" = None) -> str:
    """One log line, without its newline. `about`: what it belongs to."""
    fields: dict[str, object] = {
        "arch": os.uname().machine,
        "command": context.verb,
        "name": "kata-fsm",
        "pid": os.getpid(),
        "source": "runtime",
    }
    fields = dict(sorted({**fields, **(about or {})}.items()))
    when = rfc3339(WORLD.wall_ns())
    if context.log_format == "json":
        return cjson.dumps({**fields, "level": level, "msg": message, "time": when})
    tail = "".join(f" {name}={_bare(value)}" for name, value in fields.items())
    return f'time="{when}" level={level} msg={_bare(message)}{tail}'


def say(text: str) -> None:
    """A line on stderr. One that takes none is no reason to tell nobody else: containerd's CRI makes a pod's sandbox with a
    stderr that is open for reading only."""
    try:
        os.write(2, (text + "\n").encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def write(context: Context, level: str, message: str) -> None:
    """One line to the host's log, and to `--log` if there is one. A log that cannot be written must not change what a verb
    does."""
    from kata_fsm import system_log

    message, about = redacted(message), subject(context, level)
    system_log.send(level, message, {**about, "command": context.verb} if context.verb else about)
    if not context.log:
        return
    data = (line(context, level, message, about) + "\n").encode("utf-8", "backslashreplace")
    try:
        fd = os.open(context.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_SYNC | os.O_CLOEXEC, 0o640)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
    except OSError as error:
        say(f"cannot write log `{context.log}`: {error.strerror}")


def later(context: Context, level: str, message: str) -> None:
    """A line that is written when it is known what it belongs to: by `heard`, or when the verb ends."""
    context.pending.append((level, message))


def flush(context: Context) -> None:
    """Write the lines that wait."""
    lines, context.pending = context.pending, []
    for level, message in lines:
        warn(context, message) if level == "warning" else write(context, level, message)


def heard(context: Context, reply: "dict[str, object]") -> "dict[str, object]":
    """`reply` of a supervisor, which may say which record holds the command."""
    seq = reply.get("seq")
    if isinstance(seq, int):
        context.seq = seq
    if context.pending:
        flush(context)
    return reply


def warn(context: Context, message: str) -> None:
    """A warning: in the log when there is one, and on stderr only with --debug."""
    write(context, "warning", message)
    if context.debug:
        from kata_fsm.replay.escape import harmless

        say(f"warning: {harmless(message)}")


def warn_all(context: Context, reply: dict[str, object]) -> None:
    """The warnings in a supervisor's reply."""
    warnings = reply.get("warnings")
    for warning in warnings if isinstance(warnings, list) else ():
        warn(context, str(warning))


def traceback_of(error: BaseException) -> str:
    """The traceback, for --debug and for naming the place of a bug."""
    import traceback

    return "".join(traceback.format_exception(error))
