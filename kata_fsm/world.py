# SPDX-License-Identifier: Apache-2.0
"""The one door through which clocks, randomness, ids, pids and paths enter.

Nothing else reads a clock or draws randomness (a lint rule forbids it), so that a run can be repeated from a seed by
standing another `World` in its place. Hot path: imports only C modules and `os`.
"""

import os
import time

RUN_DIR = "/run/kata-fsm"
STATE_DIR = "/var/lib/kata-fsm"
HOST_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id", "/sys/class/dmi/id/product_uuid")


class World:
    """Clocks, randomness and identity of this host, as the kernel gives them."""

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return time.time_ns()

    def mono_ns(self) -> int:
        """Nanoseconds of CLOCK_BOOTTIME: comparable between processes of one boot, and counts suspend."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def boot_id(self) -> str:
        """The kernel's boot id: 36 characters, changes with every boot."""
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()

    def host_id(self) -> str:
        """What tells this host from others that may be given the same journal: `host-` and 32 hex characters; empty when
        the host has nothing of the sort.

        /etc/machine-id, or dbus's copy of it, or the firmware's product UUID, in that order; hashed, because
        machine-id(5) asks not to show it around, and a journal is shown around. A container or a chroot often has none of
        them: then there is no id, and owners are neither stated nor compared, for a made-up id beside the journal would
        travel with it and prove nothing. Images that were all given the same machine-id are taken for one host.
        """
        for path in HOST_ID_FILES:
            try:
                with open(path, encoding="ascii", errors="replace") as file:
                    text = file.read().strip().lower()
            except OSError:
                continue
            # `uninitialized`: systemd has not drawn one yet. A firmware that was not told its UUID has all zeros or ones.
            if text and text != "uninitialized" and text.strip("0-") and text.strip("f-"):
                import hashlib

                return "host-" + hashlib.sha256(b"kata-fsm journal owner " + text.encode()).hexdigest()[:32]
        return ""

    def draw_uid(self) -> str:
        """A sandbox's unique id: 12 lowercase hex characters."""
        return os.urandom(6).hex()

    def random_bytes(self, count: int) -> bytes:
        """`count` bytes of the kernel's randomness."""
        return os.urandom(count)

    def pid(self) -> int:
        """This process."""
        return os.getpid()

    def start_ticks(self, pid: int) -> int:
        """When a process started, in clock ticks since the boot (field 22 of its stat). Raises `OSError` without it."""
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])


WORLD = World()


def run_dir() -> str:
    """Base of everything that does not outlive a boot."""
    return os.environ.get("KATA_FSM_RUN") or RUN_DIR


def state_dir() -> str:
    """Base of what outlives a boot: the journal and the logs."""
    return os.environ.get("KATA_FSM_STATE") or STATE_DIR


def journal_dir() -> str:
    """The journal's directory."""
    return os.environ.get("KATA_FSM_JOURNAL") or state_dir() + "/journal"


class Paths:
    """Where the host resources of one sandbox live, all derived from its uid."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.base = f"{run_dir()}/sandboxes/{uid}"
        self.logs = f"{state_dir()}/logs/{uid}"
        self.supervisor_sock = self.base + "/supervisor.sock"
        self.supervisor_lock = self.base + "/supervisor.lock"
        self.qmp_sock = self.base + "/qmp.sock"
        self.agent_sock = self.base + "/agent.sock"
        self.qemu_pid = self.base + "/qemu.pid"
        self.virtiofsd_sock = self.base + "/virtiofsd.sock"
        self.virtiofsd_pid = self.base + "/virtiofsd.pid"
        self.netns = self.base + "/netns"
        self.shared = self.base + "/shared"
        self.specs = self.base + "/specs"
        self.console_log = self.logs + "/console.log"
        self.qemu_log = self.logs + "/qemu.log"
        self.virtiofsd_log = self.logs + "/virtiofsd.log"
        self.supervisor_log = self.logs + "/supervisor.log"

    def container_tree(self, key: str) -> str:
        """The directory of one container inside the shared tree."""
        return f"{self.shared}/{key}"


def repository_root() -> str:
    """The directory that holds the `kata_fsm` package: the checkout, or site-packages when installed."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
