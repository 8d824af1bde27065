# SPDX-License-Identifier: Apache-2.0
"""The words that the machines speak: causes, events, inputs, intents and steps.

A record's *event* is always one `Moved`: which machine of which subject went from where to where, by which trigger, and
what was learnt. Inputs are what may happen to a pod: a *command* (somebody asked), an *outcome* (an effect ended) or an
*observation* (the world changed by itself). All are `msgspec` structs, immutable, and JSON-able.
"""

from __future__ import annotations

from typing import Any

import msgspec

Facts = dict[str, Any]
"""JSON-able detail: what a transition taught us."""


class Cause(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why something ended. `kind` is one of `CAUSES`; `evidence` is what it was concluded from."""

    kind: str
    message: str = ""
    evidence: Facts = {}


CAUSES: dict[str, str] = {
    "exited": "the process ended by itself with an exit code",
    "signaled": "the process was ended by a signal inside the guest",
    "guest_oom": "the guest kernel's OOM killer ended the process",
    "workload_exited": "the sandbox container ended, and with it the sandbox",
    "operator": "somebody asked for it",
    "resolved": "somebody forced its end by `recover resolve`",
    "host_oom": "the host's OOM killer ended the virtual machine monitor",
    "vm_killed": "the virtual machine monitor was ended from outside",
    "vm_crashed": "the virtual machine monitor crashed",
    "vm_exited": "the virtual machine monitor ended by itself",
    "guest_panic": "the guest kernel panicked",
    "guest_shutdown": "the guest powered off or rebooted itself",
    "agent_lost": "the agent in the guest ended or stopped answering",
    "virtiofsd_lost": "virtiofsd ended while the guest was using it",
    "share_died": "what `virtiofsd_lost` was called at first; older records have it",
    "timeout": "something did not come to an end within its limit; the evidence names the phase",
    "create_failed": "the sandbox or container never came to be",
    "start_failed": "the container's process could not be started",
    "exec_failed": "the additional process could not be started",
    "sandbox_stopped": "its sandbox was stopped under it",
    "container_stopped": "its container ended under it",
    "client_gone": "the caller went away before the creation could be completed",
    "host_reboot": "the host was started anew",
    "supervisor_failed": "its supervisor failed again and again: a bug of ours",
    "unknown": "the world cannot tell; never taken for success",
}

CLEAN_ENDINGS = frozenset({"workload_exited", "operator"})
"""A sandbox that ends by one of these has `stopped`; by any other it has `failed`."""

EXIT_UNKNOWN = 255
"""Exit code of a process whose true code nobody knows: unknown is never success."""

EXIT_KILLED = 128 + 9
"""Exit code of a process that SIGKILL ended, as a shell says it."""


# gc=False: what holds nothing but JSON cannot be part of a cycle, and a fold makes as many as there are events.
class Moved(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One transition, as stored: `machine` of `subject` (empty for the pod's own) went from `source` to `dest`."""

    machine: str
    trigger: str
    source: str
    dest: str
    subject: str = ""
    facts: Facts = {}
    rule: str = ""  # the coupling rule that fired it; empty when an input did


class Intent(msgspec.Struct, frozen=True):
    """An effect that must be performed, because a machine is in the transitional state it belongs to.

    `kind` is `noun.verb`; `subject` is empty, a container id, or `container/process`. `params` is derived from the folded
    pod alone, so that the same intent can be derived again after a crash.
    """

    kind: str
    subject: str
    params: Facts

    @property
    def key(self) -> tuple[str, str]:
        """What identifies an outstanding effect: its kind and subject."""
        return (self.kind, self.subject)


# --- commands: somebody asked -----------------------------------------------------------------------------------------


class CreateSandbox(msgspec.Struct, frozen=True, tag_field="do", tag="create_sandbox"):
    """Make the pod and declare its first container, which has the sandbox's id.

    `config` holds what bring-up needs: root, hypervisor settings, given network namespace, host name.
    """

    sandbox: str
    uid: str
    config: Facts
    container: Facts


class CreateContainer(msgspec.Struct, frozen=True, tag_field="do", tag="create_container"):
    """Declare a further container and its init process. `config`: bundle, rootfs, binds, cgroups, terminal, ..."""

    container: str
    config: Facts


class AttachShim(msgspec.Struct, frozen=True, tag_field="do", tag="attach_shim"):
    """A shim offers itself as the host pid of a process. `shim`: pid, start_ticks, boot_id."""

    process: str
    shim: Facts


class Start(msgspec.Struct, frozen=True, tag_field="do", tag="start"):
    container: str


class Pause(msgspec.Struct, frozen=True, tag_field="do", tag="pause"):
    container: str


class Resume(msgspec.Struct, frozen=True, tag_field="do", tag="resume"):
    container: str


class Exec(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="do", tag="exec"):
    """Declare an additional process `process` (`container/eN`). `config`: terminal, redacted arguments, file of the rest.
    `shim`, when its caller has started one already, is as in `AttachShim`, which it then includes."""

    container: str
    process: str
    config: Facts
    shim: Facts = {}


class Kill(msgspec.Struct, frozen=True, tag_field="do", tag="kill"):
    """Send a signal. Moves no machine: what the signal does is observed like any other end."""

    container: str
    signal: int
    all: bool = False


class Delete(msgspec.Struct, frozen=True, tag_field="do", tag="delete"):
    container: str
    force: bool = False


class Update(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="do", tag="update"):
    """Change resources. Moves no machine. `limits`: all that the container asks of the host from now on, as
    `oci.hosting.Asked` has it; absent, as in older records, that is not known to change."""

    container: str
    resources: Facts
    limits: Facts | None = None


class ChangeNetwork(msgspec.Struct, frozen=True, tag_field="do", tag="change_network"):
    """Change the running pod's network. `change` has one member: `rescan` (true: what the namespace holds now), `add` or
    `remove` (an interface), or `routes` (the guest's, all of them)."""

    change: Facts


class StopSandbox(msgspec.Struct, frozen=True, tag_field="do", tag="stop_sandbox"):
    """End the pod for `cause`. With `force`, output that nobody reads is not waited for."""

    cause: Cause
    force: bool = False


class ResolveSandbox(msgspec.Struct, frozen=True, tag_field="do", tag="resolve_sandbox"):
    """Force the pod to its end, as `failed`, for a `reason` that somebody gave. What cannot be released is given up."""

    reason: str


class AbandonProcess(msgspec.Struct, frozen=True, tag_field="do", tag="abandon_process"):
    """The caller of an exec went away before a shim attached."""

    process: str
    cause: Cause


Command = (
    CreateSandbox
    | CreateContainer
    | AttachShim
    | Start
    | Pause
    | Resume
    | Exec
    | Kill
    | Delete
    | Update
    | ChangeNetwork
    | StopSandbox
    | ResolveSandbox
    | AbandonProcess
)

# --- outcomes: an effect ended ----------------------------------------------------------------------------------------


class EffectDone(msgspec.Struct, frozen=True, tag_field="outcome", tag="done"):
    kind: str
    subject: str
    result: Facts = {}
    ms: float = 0.0


class EffectFailed(msgspec.Struct, frozen=True, tag_field="outcome", tag="failed"):
    kind: str
    subject: str
    phase: str
    message: str
    evidence: Facts = {}
    ms: float = 0.0


Outcome = EffectDone | EffectFailed

# --- observations: the world changed by itself ------------------------------------------------------------------------


class VmDied(msgspec.Struct, frozen=True, tag_field="saw", tag="vm_died"):
    cause: Cause


class ShareDied(msgspec.Struct, frozen=True, tag_field="saw", tag="share_died"):
    cause: Cause


class AgentLost(msgspec.Struct, frozen=True, tag_field="saw", tag="agent_lost"):
    cause: Cause


class ProcessExited(msgspec.Struct, frozen=True, tag_field="saw", tag="process_exited"):
    """`code` as a shell would say it (128 + signal); `cause` tells what ended it."""

    process: str
    code: int
    cause: Cause


class Drained(msgspec.Struct, frozen=True, tag_field="saw", tag="drained"):
    """Every byte that the process wrote has been handed to its shim, or can no longer be."""

    process: str
    bytes: Facts = {}


class HostRebooted(msgspec.Struct, frozen=True, tag_field="saw", tag="host_rebooted"):
    """The boot id differs from the one under which the sandbox ran: nothing of it can be alive."""

    boot_id: str


class UpdateUndone(msgspec.Struct, frozen=True, tag_field="saw", tag="update_undone"):
    """An update was not done: the container asks of the host what it did before."""

    container: str
    limits: Facts


Observation = VmDied | ShareDied | AgentLost | ProcessExited | Drained | HostRebooted | UpdateUndone

Input = Command | Outcome | Observation

# --- what a step is ---------------------------------------------------------------------------------------------------


class Draft(msgspec.Struct, frozen=True):
    """A record to be written. `cause` counts back within the same step (-1: the record before); 0 means none."""

    kind: str
    type: str
    body: Facts
    cause: int = 0


class Step(msgspec.Struct, frozen=True):
    """What `decide` answers.

    `records` must be durable BEFORE any of `intents` is performed, and before anyone is told that the input was accepted.
    `intents` are performed AFTER that, in any order; the outcome of each comes back as an input of its own.
    """

    records: tuple[Draft, ...]
    intents: tuple[Intent, ...]
