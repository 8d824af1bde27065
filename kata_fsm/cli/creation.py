# SPDX-License-Identifier: Apache-2.0
"""Creating a container: what `create` and `run` have in common.

Everything about the bundle is judged here, before any process is started. A bundle that describes a sandbox gets a
supervisor of its own; a container of an existing sandbox is handed to that sandbox's. The supervisor asks for the shim
when it wants one attached, and answers when the container exists in the guest.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import msgspec

from journal import JournalError
from kata_fsm import OCI_VERSION, spawn
from kata_fsm.cjson import dumps
from kata_fsm.cli import client, console, log, lookup, shims
from kata_fsm.cli.attending import ShimDied, await_reply
from kata_fsm.cli.context import Context
from kata_fsm.cli.log import rfc3339
from kata_fsm.cli.sharing import name_target
from kata_fsm.config.load import load as load_config
from kata_fsm.config.settings import (
    Settings,
    create_timeout_s,
    hypervisor_settings,
    kernel_modules,
    memory_overhead_mib,
)
from kata_fsm.control import Connection, raise_error
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.errors import CallerError, KataFsmError, SpecError, SupervisorGone, UsageError, WorldError
from kata_fsm.limits import ROOT_PORTS_MAX
from kata_fsm.oci import fields, guest, hosting, sizing
from kata_fsm.oci.check import check
from kata_fsm.oci.looking import answered
from kata_fsm.oci.names import check_id, sha256_hex
from kata_fsm.oci.redact import redacted
from kata_fsm.oci.sandbox import Place, place_of
from kata_fsm.oci.spec import Loaded, load
from kata_fsm.world import WORLD


class Request(msgspec.Struct, frozen=True):
    """A creation as asked for. `attached`: the caller's own stdio or terminal serves, and stays ours to watch."""

    id: str
    bundle: str
    console_socket: str | None
    console: str | None
    preserve_fds: int
    attached: bool


class Created(msgspec.Struct, frozen=True):
    """What came of it: the shim's pid is the one that the caller knows the container by."""

    sandbox: str
    stream: str
    pid: int
    shim_pid: int
    terminal: bool


def request_from(options: argparse.Namespace, *, attached: bool) -> Request:
    """The request in parsed options. Raises `UsageError` for an id or bundle that cannot be."""
    if options.preserve_fds < 0:
        raise UsageError(f"--preserve-fds: `{options.preserve_fds}` is negative")
    return Request(
        id=check_id(options.id),
        bundle=_bundle(options.bundle),
        console_socket=options.console_socket,
        console=options.console,
        preserve_fds=options.preserve_fds,
        attached=attached,
    )


def _bundle(path: str) -> str:
    if not path:
        raise UsageError("Missing bundle path")

    def look() -> str:
        bundle = os.path.realpath(path)
        if not os.path.exists(bundle):
            raise UsageError(f"Invalid bundle path '{path}': no such file or directory")
        if not os.path.isdir(bundle):
            raise UsageError(f"Invalid bundle path '{path}', it should be a directory")
        return bundle

    return answered(path, look)


def check_console(*, terminal: bool, given: bool, attached: bool) -> None:
    """Refuse combinations of terminal and console socket that cannot work, as runc does."""
    if terminal and not given and not attached:
        raise UsageError("cannot allocate tty if kata-fsm will detach without setting console socket")
    if given and not terminal:
        raise UsageError("cannot use console socket if kata-fsm will not detach or allocate tty")
    if given and attached:
        raise UsageError("cannot use console socket if kata-fsm will not detach")


def create(context: Context, request: Request) -> Created:
    """Create a container. When this raises, nothing is left that was not there before."""
    _require_free(context, request.id)
    if context.systemd_cgroup:
        _require_systemd()
    loaded = load(request.bundle)
    check(loaded)
    given = bool(request.console_socket or request.console)
    check_console(terminal=loaded.terminal, given=given, attached=request.attached)
    place = place_of(request.id, loaded.annotations)
    # A container of an existing sandbox cannot change what that was made with: its annotations are not even judged.
    settings = load_config(context.config, loaded.annotations if place.is_new else None, debug=context.debug)
    used = [f"`{path}`" for path in (settings.origin, *settings.drop_ins) if path]
    log.later(context, "info", f"configuration: {', '.join(used) or 'built-in defaults, as there is no file'}")
    adapted = guest.adapt(
        loaded,
        key=request.id,
        kind=place.kind,
        seccomp=not settings.runtime.disable_guest_seccomp,
        spare_devices=settings.runtime.privileged_without_host_devices,
    )
    name_target(loaded, adapted, place)
    # What is said of the configuration is said of a sandbox once: of a further container when it has changed since then.
    for warning in (*(settings.warnings if place.is_new else ()), *adapted.warnings):
        log.later(context, "warning", warning)
    if request.preserve_fds:
        log.later(
            context,
            "warning",
            f"--preserve-fds {request.preserve_fds}: kept open on the host; the guest cannot see them",
        )
    message = {
        "op": "create",
        "actor": client.actor(context),
        "container": container_message(context, request, loaded, adapted),
        "config_notes": _digest(settings.file_notes),
    }
    with Terminal(request.console_socket, request.console, loaded) as terminal:
        return _create_in(context, request, place, settings, loaded, adapted, message, terminal)


def _require_systemd() -> None:
    from kata_fsm import systemd  # of no use to the others, who need not wait for it

    if not systemd.booted():
        raise UsageError(
            "systemd cgroup flag passed, but systemd support for managing cgroups is not available",
            hint="systemd does not run here; use cgroupfs",
        )


def _digest(notes: tuple[str, ...]) -> str:
    """What tells whether the same is to be said of the configuration as before."""
    return sha256_hex("\n".join(notes).encode("utf-8", "surrogateescape"))


def container_message(context: Context, request: Request, loaded: Loaded, adapted: guest.Adapted) -> dict[str, Any]:
    """The container as the supervisor hears of it. All of it is recorded, but `guest_spec`: that may hold secrets, and is
    kept only until the guest has it."""
    process = loaded.spec.process
    return {
        "id": request.id,
        "root": os.path.realpath(context.root),
        "bundle": request.bundle,
        "rootfs": loaded.rootfs,
        "rootfs_readonly": bool(loaded.spec.root and loaded.spec.root.readonly),
        "binds": msgspec.to_builtins(adapted.binds),
        **({"disks": msgspec.to_builtins(adapted.disks)} if adapted.disks else {}),
        **({"devices_left_out": adapted.left_out} if adapted.left_out else {}),
        **_cgroup(context, request.id, adapted),
        **_limits(loaded),
        "terminal": loaded.terminal,
        "annotations": dict(loaded.annotations),
        "args": redacted(process.args or [] if process else []),
        "sandbox_pidns": adapted.sandbox_pidns,
        "shm_size": adapted.shm_size,
        "created": rfc3339(WORLD.wall_ns()),
        "owner": f"#{os.getuid()}",
        "guest_spec": adapted.guest_spec,
        **_hooks(request, loaded, adapted),
    }


def _cgroup(context: Context, container_id: str, adapted: guest.Adapted) -> dict[str, Any]:
    """Where it belongs on the host, and whether systemd is to be asked. Raises `UsageError` for a path that systemd cannot
    mean, in runc's words."""
    path = adapted.cgroups_path
    if not context.systemd_cgroup:
        return {"cgroups_path": path}
    path = path or f"system.slice:kata-fsm:{container_id}"
    if path.startswith("/") or path.count(":") != 2:
        raise UsageError(
            f'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "{path}" instead',
            hint="correct `linux.cgroupsPath` in config.json, or leave out `--systemd-cgroup`",
        )
    if path.endswith(".slice"):
        raise UsageError(f"`linux.cgroupsPath` is `{path}`: a slice holds no process itself", hint="name a scope")
    return {"cgroups_path": path, "systemd_cgroup": True}


def _limits(loaded: Loaded) -> dict[str, Any]:
    """What it asks of the host's processes, if anything."""
    resources = loaded.spec.linux.resources if loaded.spec.linux else None
    found = hosting.merged({}, hosting.asked(resources))
    return {"limits": found} if found else {}


def _hooks(request: Request, loaded: Loaded, adapted: guest.Adapted) -> dict[str, Any]:
    """The hooks that run on the host, and what is the same in every state document they are given; not recorded either."""
    given = loaded.document.get("hooks") or {}
    wanted = {kind: given[kind] for kind in fields.HOST_HOOKS if given.get(kind)}
    if "createContainer" in wanted:
        wanted |= {"root": loaded.rootfs, "places": adapted.places}
    state = {
        "ociVersion": OCI_VERSION,
        "id": request.id,
        "bundle": request.bundle,
        "annotations": dict(loaded.annotations),
    }
    return {"hooks": {"state": state, **wanted}} if wanted else {}


def sandbox_message(
    context: Context, uid: str, place: Place, settings: Settings, loaded: Loaded, adapted: guest.Adapted
) -> dict[str, Any]:
    """The sandbox that a container brings with it: what bring-up needs. It is recorded."""
    return {
        "id": place.sandbox,
        "uid": uid,
        "kind": place.kind,
        **_cgroup(context, place.sandbox, adapted),
        "root": os.path.realpath(context.root),
        "hypervisor": _machine(context, settings, loaded, adapted),
        "memory_overhead_mib": memory_overhead_mib(settings),
        "config_origin": settings.origin,
        "config_drop_ins": list(settings.drop_ins),
        "config_annotations": settings.annotations,
        "config_notes": _digest(settings.file_notes),
        "boot_timeout_s": settings.agent.dial_timeout,
        "create_timeout_s": create_timeout_s(settings),
        "kernel_modules": kernel_modules(settings),
        "netns": adapted.netns,
        "network_model": settings.runtime.internetworking_model,
        **({"network_watched": True} if settings.netmon.enable_netmon else {}),
        "hostname": loaded.spec.hostname or "",
        "shm_size": adapted.shm_size,
        "sandbox_pidns": False,
        "dns": [],
    }


def _machine(context: Context, settings: Settings, loaded: Loaded, adapted: guest.Adapted) -> dict[str, Any]:
    """The hypervisor's settings, large enough for the limits and disks in the bundle, and no larger than the configuration
    allows."""
    found, usual, qemu = hypervisor_settings(settings), HypervisorSettings(), settings.qemu
    want = sizing.wanted(loaded.spec.linux.resources if loaded.spec.linux else None, loaded.annotations)
    least = {
        "memory_mib": found.get("memory_mib", usual.memory_mib),
        "vcpus": found.get("vcpus", usual.vcpus),
    }
    host_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    host_cpus = os.cpu_count() or 1
    asked = sizing.sized(want, **least, host_mib=host_mib, host_cpus=host_cpus)
    ceilings = {"default_maxmemory": "memory_mib", "default_maxvcpus": "vcpus"}
    size = sizing.sized(
        want,
        **least,
        host_mib=min(host_mib, qemu.default_maxmemory or host_mib),
        host_cpus=min(host_cpus, qemu.default_maxvcpus or host_cpus),
    )
    for key, name in ceilings.items():
        if size[name] < asked[name]:
            what = f"limits ask for a machine of `{asked[name]}` {'MiB' if name == 'memory_mib' else 'processors'}"
            log.later(context, "warning", f"{what}, `{key}` allows `{getattr(qemu, key)}`")
    disks = len({(disk.major, disk.minor) for disk in adapted.disks})
    ports = min(found.get("root_ports", usual.root_ports) + disks, ROOT_PORTS_MAX)
    return {**found, **size, **({"root_ports": ports} if disks else {})}


def _require_free(context: Context, container_id: str) -> None:
    found = lookup.find(context, container_id)
    if found is not None:
        raise CallerError(
            "ID already in use, unique ID should be provided",
            hint=f"container `{container_id}` is `{found.status}`; delete it or use another id",
        )


def _create_in(
    context: Context,
    request: Request,
    place: Place,
    settings: Settings,
    loaded: Loaded,
    adapted: guest.Adapted,
    message: dict[str, Any],
    terminal: Terminal,
) -> Created:
    if place.is_new:
        uid = WORLD.draw_uid()
        stream = spawn.stream_of(place.sandbox, uid)
        message["sandbox"] = sandbox_message(context, uid, place, settings, loaded, adapted)
        if settings.runtime.enable_debug:  # in the log alone: stderr is the container's
            log.later(context, "debug", f"the machine's settings: {dumps(message['sandbox']['hypervisor'])}")
        _start_new(place.sandbox, stream, uid)
    else:
        home = lookup.find(context, place.sandbox)
        context.container = request.id  # which log lines are about
        if home is None or not home.live:
            raise SpecError(
                f"sandbox `{place.sandbox}` of container `{request.id}` is not there", hint="create it first"
            )
        stream = home.stream
    context.stream, context.asked = stream, True

    def attempt(connection: Connection) -> tuple[int, int]:
        connection.send(message)
        return attend(
            context,
            connection,
            lambda reply: shims.plan_from(
                reply,
                sandbox=place.sandbox,
                stream=stream,
                preserve_fds=request.preserve_fds,
                places=adapted.places,
                **terminal.stdio(),
            ),
            notes=settings.file_notes,
        )

    try:
        if place.is_new:
            with client.connect_running(stream) as connection:
                pid, shim_pid = attempt(connection)
        else:
            pid, shim_pid = client.asking(place.sandbox, stream, attempt)
    except (SupervisorGone, ShimDied) as error:
        _take_back(context, request, place, stream)
        raise WorldError(f"cannot create container `{request.id}`: {error}", hint=error.hint) from error
    return Created(place.sandbox, stream, pid, shim_pid, loaded.terminal)


def _take_back(context: Context, request: Request, place: Place, stream: str) -> None:
    """Our supervisor ended or went silent half way: another one undoes what it had begun, as far as it can be reached."""
    if lookup.find(context, request.id) is None:
        if place.is_new:
            spawn.forget(spawn.uid_of(stream))
        return
    try:
        client.end_silent(stream)
        client.ask_for(context, place.sandbox, stream, request.id, "delete", force=True)
    except (KataFsmError, JournalError) as error:
        log.warn(context, f"what was begun for container `{request.id}` could not be undone: {error}")


def _start_new(sandbox: str, stream: str, uid: str) -> None:
    try:
        spawn.start_supervisor(sandbox, stream, resume=False)
    except Exception:
        spawn.forget(uid)
        raise


class Terminal:
    """The container's terminal, if it has one: made, sent or opened when entered, closed here when left."""

    def __init__(
        self, socket_path: str | None, given: str | None, loaded: Loaded | None, *, wanted: bool = False
    ) -> None:
        self.socket_path = socket_path
        self.given = given
        self.wanted = loaded.terminal if loaded is not None else wanted
        process = loaded.spec.process if loaded is not None else None
        size = process.console_size if process is not None else None
        self.size = (size.height, size.width) if size is not None and size.height and size.width else None
        self._fd: int | None = None

    def __enter__(self) -> Terminal:
        if self.given:
            self._fd = console.open_given(self.given)
        elif self.socket_path:
            master, self._fd = console.open_pair(self.size)
            try:
                console.send_master(self.socket_path, master)
            finally:
                os.close(master)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)

    def stdio(self) -> dict[str, Any]:
        """What a shim's plan has to know."""
        if self._fd is None:
            return {"tty": self.wanted}
        return {"tty": True, "own_terminal": True, "stdio": (self._fd, self._fd, self._fd)}


def attend(context: Context, connection: Connection, plan_of: Any, *, notes: tuple[str, ...] = ()) -> tuple[int, int]:
    """Serve the supervisor until it answers: (pid to report, shim's pid). Raises its error, or that the shim died.

    `notes` are logged if it says that the configuration has changed.
    """
    reply = raise_error(log.heard(context, connection.receive()))
    for note in notes if reply.get("config_changed") else ():
        log.warn(context, note)
    if reply.get("need") != "shim":
        raise WorldError(f"the supervisor asked for `{reply.get('need')}`, which this version does not know")
    shim_pid, warnings = shims.start(plan_of(reply))
    for warning in warnings:
        log.warn(context, warning)
    reply = raise_error(log.heard(context, await_reply(connection, shim_pid)))
    log.warn_all(context, reply)
    pid = reply.get("pid")
    return (pid if isinstance(pid, int) and pid > 0 else shim_pid), shim_pid
