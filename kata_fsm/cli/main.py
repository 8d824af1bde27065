# SPDX-License-Identifier: Apache-2.0
"""`kata-fsm`: global options, the table of verbs, and how errors leave.

`state` and `list` are called by engines all the time, so this module and what those two verbs import stay tiny: no
argparse, json, re, typing, enum or msgspec. A test pins that.
"""

import os
import sys

from kata_fsm import OCI_VERSION, __version__
from kata_fsm.cli.context import Context
from kata_fsm.errors import KataFsmError, UsageError

TYPE_CHECKING = False  # what `typing.TYPE_CHECKING` is, without importing typing; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable

VERBS: dict[str, str] = {
    "create": "create a container: its sandbox's virtual machine is up, its process is not started yet",
    "start": "start the process of a created container",
    "run": "create and start a container; attached unless --detach",
    "state": "print the OCI state of a container",
    "kill": "send a signal to a container's process",
    "delete": "delete a stopped container and everything it held",
    "exec": "run a further process in a running container",
    "ps": "show the processes of a container",
    "list": "list the containers under --root",
    "pause": "pause a container",
    "resume": "resume a paused container",
    "update": "change a container's resources",
    "network": "show and change the network of a running pod",
    "events": "print a container's resource use",
    "features": "print what this runtime supports, as runtime-spec features JSON",
    "spec": "write a config.json to start from",
    "recover": "say what is left over and what would be done about it, and do it",
    "replay": "tell the story of a sandbox from the journal",
    "journal": "inspect and verify the journal",
    "audit": "export who did what",
    "check": "could a sandbox be created here and now?",
    "logs": "gather the lines of one sandbox from everywhere, in the order of time",
    "env": "print versions, paths and settings",
    "config": "show the configuration in force, and where each value came from",
    "completion": "print completion for bash, zsh or fish",
    "fuzz": "run random lives in a simulated world, and look for what does not hold",
    "version": "print the version",
}
"""Every verb and its line in the help; the module is `kata_fsm.cli.verbs.VERB`."""

READERS = ("replay", "journal", "audit", "recover", "logs")
"""Verbs of people that read whatever journal they are pointed at, in a process of their own (see guarded.py)."""

ALIASES = {"kata-check": "check", "kata-env": "env", "kata-network": "network"}
"""Kata's older names."""

ROLES: dict[str, str] = {"supervisor": "kata_fsm.supervisor.main", "shim": "kata_fsm.shim"}
"""The long-lived processes, which are the same command; their modules have `main(argv) -> int`."""

CONFIG_PATHS = ("/etc/kata-containers/configuration.toml", "/usr/share/defaults/kata-containers/configuration.toml")

_VALUED = {
    "root": "root",
    "log": "log",
    "log-format": "log_format",
    "config": "config",
    "kata-config": "config",
    "rootless": "rootless",
    "criu": "criu",
}
_FLAGS = ("debug", "systemd-cgroup")
_ACTIONS = {
    "version": "version",
    "v": "version",
    "help": "help",
    "h": "help",
    "show-default-config-paths": "paths",
    "kata-show-default-config-paths": "paths",
}


def usage() -> str:
    """The help text."""
    verbs = "\n".join(f"   {name:<10} {line}" for name, line in VERBS.items())
    return f"""NAME:
   kata-fsm - OCI runtime whose sandboxes are virtual machines and whose state is an event log

USAGE:
   kata-fsm [global options] command [command options] [arguments...]

VERSION:
   {__version__}

COMMANDS:
{verbs}

GLOBAL OPTIONS:
   --root DIR                     namespace of container ids (default: `/run/kata-fsm`)
   --log FILE                     append errors and warnings to FILE
   --log-format text|json         how (default: `text`)
   --config FILE                  configuration file (also --kata-config)
   --debug                        log more, and print tracebacks of our own bugs
   --systemd-cgroup               cgroup paths have the form `slice:prefix:name`; refused where systemd does not run
   --rootless true|false|auto     accepted: only root can run sandboxes
   --show-default-config-paths    print where configuration is looked for
   --version, -v                  print the version
   --help, -h                     print this
"""


def version_text() -> str:
    """What `--version` prints, in runc's shape, which Docker shows. go-runc parses it without an error; the numbers it keeps
    only of what calls itself runc."""
    from kata_fsm.cli.verbs.version import commit

    known = commit()
    middle = "" if known == "unknown" else f"commit: {known}\n"
    return f"kata-fsm version {__version__}\n{middle}spec: {OCI_VERSION}\n"


def _set(context: Context, name: str, value: str) -> None:
    if name == "log_format" and value not in ("text", "json"):
        raise UsageError(f'unknown log-format "{value}"')
    if name == "rootless":
        if value not in ("true", "false", "auto"):
            raise UsageError(f"--rootless: `{value}` is none of `true`, `false`, `auto`")
        if value == "true":
            raise UsageError("--rootless=true: only root can run sandboxes", hint="run as root")
    elif name != "criu":
        setattr(context, name, value)


def parse_globals(argv: list[str], context: Context) -> tuple[str, list[str]]:
    """(verb or `:action`, what follows it). Fills `context`; the verb is empty when there is none."""
    at = 0
    while at < len(argv):
        word = argv[at]
        at += 1
        if not word.startswith("-") or word == "-":
            return word, argv[at:]
        name, equals, value = word.lstrip("-").partition("=")
        if name in _ACTIONS:
            return ":" + _ACTIONS[name], []
        if name in _FLAGS:
            setattr(context, name.replace("-", "_"), value != "false")
        elif name in _VALUED:
            if not equals:
                if at >= len(argv):
                    raise UsageError(f"flag needs an argument: `{word}`")
                value = argv[at]
                at += 1
            _set(context, _VALUED[name], value)
        else:
            raise UsageError(f"flag provided but not defined: `{word}`", hint="see `kata-fsm --help`")
    return "", []


def _act(action: str) -> int:
    if action == "paths":
        text = "".join(path + "\n" for path in CONFIG_PATHS)
    else:
        text = version_text() if action == "version" else usage()
    sys.stdout.write(text)
    return 0


def _require_places() -> None:
    """Processes of ours run in directories of their own: a relative path would be another one to each."""
    for name in ("KATA_FSM_RUN", "KATA_FSM_STATE", "KATA_FSM_JOURNAL"):
        value = os.environ.get(name)
        if value and not value.startswith("/"):
            raise UsageError(f"{name}: `{value}` is not an absolute path")


def _dispatch(argv: list[str], context: Context, apart: bool) -> int:
    _require_places()
    verb, rest = parse_globals(argv, context)
    verb = ALIASES.get(verb, verb)
    context.verb = verb
    if context.debug and verb in VERBS:
        from kata_fsm.cli.log import write
        from kata_fsm.oci.redact import redacted

        write(context, "debug", f"version {__version__}, arguments: {' '.join(redacted([verb, *rest]))}")
    if verb in VERBS:
        name = "kata_fsm.cli.verbs." + verb
        __import__(name)
        run = sys.modules[name].run
        if apart and verb in READERS:
            from kata_fsm.cli.guarded import guarded

            return guarded(lambda: _reported(context, lambda: run(context, rest)))
        code: int = run(context, rest)
        return code
    if verb in ROLES:
        name = ROLES[verb]
        __import__(name)
        role_code: int = sys.modules[name].main(rest)
        return role_code
    if verb.startswith(":"):
        return _act(verb[1:])
    if not verb or verb == "help":
        return _act("help")
    raise UsageError(f'Invalid command "{verb}"')


def one_line(error: BaseException) -> str:
    """An error as the one line that stderr and the log get. What it quotes may hold anything: a terminal is not obeyed."""
    text = str(error) or type(error).__name__
    hint = getattr(error, "hint", None)
    if hint:
        text += f" ({hint})"
    text = " ".join(text.split())
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _fail(context: Context, error: BaseException, code: int) -> int:
    from kata_fsm.cli.log import flush, say, write

    text = one_line(error)
    say(text)
    flush(context)
    write(context, "error", text)
    return code


def _bug(context: Context, error: Exception) -> int:
    from kata_fsm.cli.log import say, traceback_of
    from kata_fsm.errors import Bug

    trace = traceback_of(error)
    if context.debug:
        say(trace.rstrip("\n"))
    where = trace.strip().splitlines()[-3:-1]
    wrapped = Bug(
        f"internal error: {type(error).__name__}: {error}", hint="a bug of ours, at" + " ".join(where)[:200].rstrip()
    )
    return _fail(context, wrapped, wrapped.exit_code)


def _refuse(context: Context, error: Exception) -> int:
    if isinstance(error, KataFsmError):
        return _fail(context, error, error.exit_code)
    if isinstance(error, BrokenPipeError):
        return 1  # whoever read our output has gone: nobody is left to tell
    if type(error).__module__.partition(".")[0] == "journal":
        code = getattr(error, "exit_code", 1)
        return _fail(context, error, code if isinstance(code, int) else 1)
    if isinstance(error, OSError) and error.strerror:
        name = f"`{error.filename}`" if error.filename is not None else "the host refused"
        return _fail(context, KataFsmError(f"{name}: {error.strerror}"), 1)
    return _bug(context, error)


def main(argv: list[str], *, apart: bool = False) -> int:
    """Run one command; `argv` excludes the program's name. Answers the exit code.

    `apart`: verbs that read a journal which may be damaged do so in a process of their own.
    """
    context = Context()
    return _reported(context, lambda: _dispatch(argv, context, apart))


def _reported(context: Context, work: "Callable[[], int]") -> int:
    """The exit code of `work`; an error that it raises is told."""
    try:
        code = work()
        sys.stdout.flush()
        if context.pending:
            from kata_fsm.cli.log import flush

            flush(context)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _refuse(context, error)
    return code


def _open_standard_descriptors() -> None:
    """Make sure that 0 to 2 are open: what is opened next would take their place, and then be taken for them."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # It takes the lowest free number, which is this one.
            os.set_inheritable(os.open("/dev/null", os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)


def console_main() -> None:
    """The installed command. Leaves at once: there is nothing to finalise, and interpreter shutdown costs CPU."""
    _open_standard_descriptors()
    code = main(sys.argv[1:], apart=True)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        code = code or 1
    os._exit(code)
