# SPDX-License-Identifier: Apache-2.0
"""Which effects are outstanding, derived from the folded pod alone.

A transitional state has exactly one outstanding effect and a stable state has none, so this is a function: nothing else
has to be remembered about work in flight, and after a crash the same intents come out again.
"""

from __future__ import annotations

from collections.abc import Callable

from kata_fsm.machines import process
from kata_fsm.machines.pod import TABLES, Pod, Unit, container_of, init_of
from kata_fsm.machines.vocab import Facts, Intent

Derive = Callable[[Pod, str, Unit], Facts]


def _config(pod: Pod) -> Facts:
    config = pod.sandbox.facts.get("config", {})
    return dict(config) if isinstance(config, dict) else {}


def _launch(pod: Pod, _: str, __: Unit) -> Facts:
    return {
        "sandbox": pod.id,
        "uid": pod.sandbox.facts.get("uid", ""),
        "settings": _config(pod).get("hypervisor", {}),
    }


def _stop_vm(pod: Pod, _: str, __: Unit) -> Facts:
    return {"sandbox": pod.id, "uid": pod.sandbox.facts.get("uid", ""), "force": bool(pod.sandbox.facts.get("force"))}


def _network(pod: Pod, _: str, __: Unit) -> Facts:
    config = _config(pod)
    return {"netns": config.get("netns") or "", "model": config.get("network_model", "none")}


def _detach(pod: Pod, subject: str, unit: Unit) -> Facts:
    """`late`: something may have been joined to a namespace that had nothing when it was attached."""
    late = bool(unit.facts.get("interfaces")) or "change" in unit.facts
    return {**_network(pod, subject, unit), **({"late": True} if late else {})}


def _plug_network(pod: Pod, subject: str, unit: Unit) -> Facts:
    known = {name: unit.facts.get(name, []) for name in ("interfaces", "routes", "neighbours")}
    return {**_network(pod, subject, unit), **known}


def _change_network(pod: Pod, subject: str, unit: Unit) -> Facts:
    more = {"change": unit.facts.get("change", {}), "routes_given": bool(unit.facts.get("routes_given"))}
    return {**_plug_network(pod, subject, unit), **more}


def _share(pod: Pod, _: str, __: Unit) -> Facts:
    return {"sandbox": pod.id}


def _configure(pod: Pod, _: str, __: Unit) -> Facts:
    config = _config(pod)
    return {
        "sandbox": pod.id,
        "hostname": config.get("hostname", ""),
        "shm_size": config.get("shm_size"),
        "sandbox_pidns": bool(config.get("sandbox_pidns")),
        "dns": config.get("dns", []),
    }


def _nothing(_: Pod, __: str, ___: Unit) -> Facts:
    return {}


def _stage(_: Pod, subject: str, unit: Unit) -> Facts:
    config = unit.facts.get("config", {})
    return {
        "container": subject,
        "rootfs": config.get("rootfs"),
        "rootfs_readonly": bool(config.get("rootfs_readonly")),
        "mounts": config.get("binds", []),
        "cgroups_path": config.get("cgroups_path", ""),
        **({"systemd_cgroup": True} if config.get("systemd_cgroup") else {}),
        **_disks(config),
    }


def _disks(config: Facts) -> Facts:
    """The block devices that it is given, if it is given any."""
    return {"disks": config["disks"]} if config.get("disks") else {}


def _with_hooks(derive: Derive) -> Derive:
    """And the container's hooks on the host, if it has any: where they are kept, and the pid they are told."""

    def derived(pod: Pod, subject: str, unit: Unit) -> Facts:
        facts = derive(pod, subject, unit)
        file = unit.facts.get("config", {}).get("hooks_file")
        if file:
            pid = pod.unit("process", init_of(subject)).facts.get("shim", {}).get("pid", 0)
            facts["hooks"] = {"file": file, "pid": pid}
        return facts

    return derived


def _guest_create(_: Pod, subject: str, unit: Unit) -> Facts:
    config = unit.facts.get("config", {})
    return {
        "container": subject,
        "spec_file": config.get("spec_file"),
        "terminal": bool(config.get("terminal")),
        "sandbox_pidns": bool(config.get("sandbox_pidns")),
        "shm_size": config.get("shm_size"),
        **_disks(config),
    }


def _container(_: Pod, subject: str, __: Unit) -> Facts:
    return {"container": subject}


def _exec(_: Pod, subject: str, unit: Unit) -> Facts:
    config = unit.facts.get("config", {})
    return {
        "container": container_of(subject),
        "exec": subject.rsplit("/", 1)[1],
        "process_file": config.get("process_file"),
        "terminal": bool(config.get("terminal")),
    }


PARAMS: dict[str, Derive] = {
    "hypervisor.launch": _launch,
    "hypervisor.stop": _stop_vm,
    "network.attach": _network,
    "network.plug": _plug_network,
    "network.change": _change_network,
    "network.detach": _detach,
    "share.prepare": _share,
    "share.plug": _share,
    "share.release": _share,
    "agent.connect": _nothing,
    "agent.configure": _configure,
    "agent.disconnect": _nothing,
    "container.prepare": _stage,
    "container.create": _with_hooks(_guest_create),
    "container.start": _with_hooks(_container),
    "container.pause": _container,
    "container.resume": _container,
    "container.kill": _container,
    "container.remove": _container,
    "container.unstage": _stage,
    "container.discard": _with_hooks(_stage),
    "process.exec": _exec,
}
"""Every kind of effect that a table names, and how its parameters are derived."""

CANCELLABLE = frozenset(kind for kind in PARAMS if kind.startswith("agent.")) | {
    "container.create",
    "container.start",
    "container.pause",
    "container.resume",
    "container.kill",
    "container.remove",
    "process.exec",
    "share.plug",
}
"""Effects inside the guest or its VMM: they hold nothing on the host that outlives it, so when their state is left they
are simply abandoned."""


ACQUIRING = frozenset(
    {
        "hypervisor.launch",
        "network.attach",
        "network.plug",
        "network.change",
        "share.prepare",
        "container.prepare",
    }
)
"""Effects that take hold of something on the host, and whose failure leads to the effect that lets go of it."""


def intent_of(pod: Pod, machine: str, subject: str) -> Intent | None:
    """The outstanding effect of one unit, if its state has one."""
    unit = pod.unit(machine, subject)
    kind = TABLES[machine].effects.get(unit.state)
    if kind is None:
        return None
    return Intent(kind, subject, PARAMS[kind](pod, subject, unit))


_MACHINE = {kind: table.name for table in TABLES.values() for kind in table.effects.values()}


def waits_for(pod: Pod, kind: str, subject: str) -> bool:
    """Whether that effect is outstanding."""
    machine = _MACHINE[kind]
    return TABLES[machine].effects.get(pod.unit(machine, subject).state) == kind


def outstanding(pod: Pod) -> list[Intent]:
    """All effects that the pod's states wait for."""
    found = (intent_of(pod, machine, subject) for machine, subject, _ in pod.units())
    return [intent for intent in found if intent is not None]


_LIVES = frozenset({process.CREATED, process.RUNNING})
_MAY_HAVE_WRITTEN = _LIVES | {process.EXITED}


class Watches:
    """What must be watched, as a function of the folded pod: the counterpart of `outstanding` for stable states.

    In the order of the pod's processes: a simulated run must start them in the same order wherever it is repeated.
    """

    def __init__(self, pod: Pod) -> None:
        self.exits = [subject for subject, unit in pod.processes.items() if unit.state in _LIVES]
        self.outputs = [subject for subject, unit in pod.processes.items() if unit.state in _MAY_HAVE_WRITTEN]
