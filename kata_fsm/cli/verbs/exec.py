# SPDX-License-Identifier: Apache-2.0
"""`exec ID CMD...` or `exec --process FILE ID`: run a further process in a running container.

Every option reaches the guest: user, additional groups, capabilities, environment, directory, no-new-privileges. Without
--process the container's own process is the pattern, as in runc.

Health probes run this every few seconds and people wait for it: it imports next to nothing, which a test pins, and
leaves to the supervisor what that has in memory already.
"""

from __future__ import annotations

from kata_fsm import cjson
from kata_fsm.cli import lookup, shims
from kata_fsm.cli.options import FLAG, LIST, NUMBER, VALUE, Option, Values, parse
from kata_fsm.errors import UsageError
from kata_fsm.world import WORLD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kata_fsm.cli.context import Context
    from kata_fsm.control import Connection

OPTIONS = (
    Option("--console-socket", VALUE, "where to send the terminal's master end", "SOCKET"),
    Option("--console", VALUE, "a terminal of the caller's to use as the process's", "PTY"),
    Option("--tty -t", FLAG, "give the process a terminal"),
    Option("--pid-file", VALUE, "write the process's pid there, last", "FILE"),
    Option("--preserve-fds", NUMBER, "keep N further descriptors open", "N"),
    Option("--no-subreaper", FLAG, "accepted: it has no meaning here"),
    Option("--process -p", VALUE, "the OCI process, as JSON", "FILE"),
    Option("--detach -d", FLAG, "leave when the process has started"),
    Option("--cwd", VALUE, "working directory", "DIR"),
    Option("--env -e", LIST, "add to the environment", "NAME=VALUE"),
    Option("--user -u", VALUE, "run as this user and group", "UID[:GID]"),
    Option("--additional-gids -g", LIST, "further groups", "GID"),
    Option("--cap -c", LIST, "add a capability", "CAP"),
    Option("--no-new-privs", FLAG, "set no-new-privileges"),
    Option("--process-label", VALUE, "SELinux label", "LABEL"),
    Option("--apparmor", VALUE, "AppArmor profile", "PROFILE"),
    Option("--cgroup", VALUE, "refused: cgroups are the guest's", "PATH"),
    Option("--ignore-paused", FLAG, "refused: a paused container takes no process"),
)


def _refuse_options(options: Values) -> None:
    refused = {
        "--process-label": (options.process_label, "the guest has no SELinux"),
        "--apparmor": (options.apparmor, "the guest has no AppArmor"),
        "--cgroup": (options.cgroup, "the guest's cgroups are its own"),
        "--ignore-paused": (options.ignore_paused, "a paused container takes no process"),
    }
    if options.preserve_fds < 0:
        raise UsageError(f"--preserve-fds: `{options.preserve_fds}` is negative")
    for name, (value, why) in refused.items():
        if value:
            raise UsageError(f"exec: `{name}` cannot be honoured: {why}")


def run(context: Context, argv: list[str]) -> int:
    """Answers the process's exit code, or 0 when detached.

    Without a terminal the shim is started first: its interpreter comes up on one processor while we and the guest work on
    others. With one, the supervisor asks for it, as in `create`.
    """
    from kata_fsm.cli import pidfile

    options = parse("exec", "run a further process in a running container", OPTIONS, argv)
    _refuse_options(options)
    found = lookup.require(context, options.id)
    _refuse_illegal(found)
    pidfile.prepare(options.pid_file)
    with_terminal = options.tty or options.console_socket or options.console or _file_wants_terminal(options.process)
    exec_process = _with_terminal if with_terminal else _without_terminal
    return exec_process(context, options, found)


def _refuse_illegal(found: lookup.Found) -> None:
    """The projection is the fold: it says `running` exactly where the tables allow an exec. Otherwise ask them why not."""
    if found.state != "running":
        from kata_fsm.cli import ask
        from kata_fsm.machines.vocab import Exec

        ask.refuse_illegal(found, Exec(found.key, f"{found.key}/new", {}))


def _file_wants_terminal(path: str | None) -> bool:
    """Whether a process file asks for a terminal. One that cannot be read is judged, and refused, later."""
    if not path:
        return False
    from kata_fsm.oci.looking import answered
    from kata_fsm.oci.reading import read_file

    try:
        return bool(cjson.loads_object(answered(path, lambda: read_file(path))).get("terminal"))
    except (OSError, ValueError):
        return True


def _request(context: Context, options: Values, found: lookup.Found) -> dict[str, Any]:
    """The request to the supervisor, which checks the process's types."""
    from kata_fsm.cli import client
    from kata_fsm.oci import process

    pattern = None if options.process else process.pattern_of(found.bundle)
    return {
        "op": "exec",
        "actor": client.actor(context),
        "container": found.key,
        "process": process.from_options(options, pattern),
        "where": process.where(options),
    }


def _without_terminal(context: Context, options: Values, found: lookup.Found) -> int:
    home = found.home if isinstance(found.home, dict) else {}
    plan = shims.Plan(
        sandbox=found.sandbox,
        stream=found.stream,
        container=found.key,
        process="x" + WORLD.random_bytes(4).hex(),
        netns=home.get("netns"),
        cgroups=list(home.get("cgroups") or []),
        preserve_fds=options.preserve_fds,
        early=True,
    )
    shim = shims.Starting(plan)
    try:
        pid = _ask_for(context, options, found, plan, shim)
    except BaseException:
        shim.abandon()
        raise
    return _finish(options, pid, shim.pid, tty=False)


def _ask_for(context: Context, options: Values, found: lookup.Found, plan: shims.Plan, shim: shims.Starting) -> int:
    """Have the process started; the pid that it is known by.

    The request names the shim, so nobody waits for it to come; and it is moved into its cgroups while the guest works.
    """
    from kata_fsm.cli import cgroups, client, log
    from kata_fsm.cli.attending import await_reply
    from kata_fsm.control import raise_error

    message = {**_request(context, options, found), "exec_id": plan.process}
    warnings = shim.confirm()
    message["shim"] = {"pid": shim.pid, "start_ticks": WORLD.start_ticks(shim.pid)}

    def attempt(connection: Connection) -> dict[str, Any]:
        connection.send(message)
        context.asked = True
        for warning in [*warnings, *cgroups.join(plan.cgroups, shim.pid)]:
            log.later(context, "warning", warning)
        return raise_error(log.heard(context, await_reply(connection, shim.pid)))

    reply = client.asking(found.sandbox, found.stream, attempt)
    log.warn_all(context, reply)
    pid = reply.get("pid")
    return pid if isinstance(pid, int) and pid > 0 else shim.pid


def _with_terminal(context: Context, options: Values, found: lookup.Found) -> int:
    from kata_fsm.cli import client
    from kata_fsm.cli.creation import Terminal, attend, check_console

    message = _request(context, options, found)
    wanted = bool(message["process"].get("terminal"))
    given = bool(options.console_socket or options.console)
    check_console(terminal=wanted, given=given, attached=not options.detach and not given)
    with Terminal(options.console_socket, options.console, None, wanted=wanted) as terminal:

        def attempt(connection: Connection) -> tuple[int, int]:
            connection.send(message)
            context.asked = True
            return attend(
                context,
                connection,
                lambda reply: shims.plan_from(
                    reply,
                    sandbox=found.sandbox,
                    stream=found.stream,
                    preserve_fds=options.preserve_fds,
                    **terminal.stdio(),
                ),
            )

        pid, shim_pid = client.asking(found.sandbox, found.stream, attempt)
    return _finish(options, pid, shim_pid, tty=wanted and not given)


def _finish(options: Values, pid: int, shim_pid: int, *, tty: bool) -> int:
    from kata_fsm.cli import attached, pidfile

    pidfile.write(options.pid_file, pid)
    return 0 if options.detach else attached.wait(shim_pid, tty=tty)
