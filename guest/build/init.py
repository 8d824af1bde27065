# SPDX-License-Identifier: Apache-2.0
"""What the guest's first process does: a root that can be pivoted, mounts, the modules of the agent's port, the agent.

The agent is a child, not process 1 itself: the kernel answers the end of process 1 with a panic, which would be taken for
the kernel's own. When the agent ends, by whatever, its wait status is told on the console and the machine is switched off.

Read it like a shell script. It is a list of system calls (see player.py) because every program a script starts costs up
to 10 ms under emulation.
"""

from collections.abc import Iterable

from guest.build.player import Call, Child

# x86-64 numbers (arch/x86/entry/syscalls/syscall_64.tbl)
OPEN, CLOSE, EXECVE, CHDIR, MKDIR, CHMOD, CHROOT, MOUNT, FINIT_MODULE = 2, 3, 59, 80, 83, 90, 161, 165, 313
PRCTL, REBOOT = 157, 169
PR_SET_CHILD_SUBREAPER = 36
REBOOT_MAGIC = (0xFEE1DEAD, 672274793)  # linux/reboot.h
POWER_OFF = 0x4321FEDC
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_MOVE = 2, 4, 8, 4096, 8192
NOTHING = MS_NOSUID | MS_NODEV | MS_NOEXEC
FIRST_FREE_FD = 3  # the kernel has opened the console as 0, 1 and 2

PYTHON = ("/usr/bin/python3", "-I", "-S", "-B", "-X", "frozen_modules=on", "/usr/lib/kata/start.pyc")
EPITAPH = "init: the agent has ended, wait status 0x"  # the host reads it: kata_fsm/effects/hypervisor/watch.py
ENVIRONMENT = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=linux")

AGENT = (
    # so that the containers' processes, which crun leaves behind, are the agent's to wait for
    Call(PRCTL, (PR_SET_CHILD_SUBREAPER, 1), "make the agent a reaper"),
    Call(EXECVE, (PYTHON[0], PYTHON, ENVIRONMENT), "start the agent"),
)


def calls(modules: Iterable[str]) -> list[Call | Child]:
    """The whole sequence. `modules`: paths of kernel modules, each after those it needs."""
    return [
        # The initramfs itself cannot be pivoted away from, which crun does for every container. A bind mount of it, moved
        # on top of it, can: so the agent and all containers live on that.
        mount("/", "/newroot", "", MS_BIND),
        chdir("/newroot"),
        mount(".", "/", "", MS_MOVE),
        Call(CHROOT, (".",), "enter the new root"),
        Call(CHMOD, ("/", 0o755), "set the mode of /"),  # the kernel makes it as open as /tmp
        mount("dev", "/dev", "devtmpfs", MS_NOSUID, "mode=0755"),
        mkdir("/dev/pts", 0o755),
        mkdir("/dev/shm", 0o755),
        mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"),
        mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),
        mount("proc", "/proc", "proc", NOTHING),
        mount("sys", "/sys", "sysfs", NOTHING),
        mount("cgroup2", "/sys/fs/cgroup", "cgroup2", NOTHING),
        mount("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755"),
        mount("tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),
        *(call for path in modules for call in load(path)),
        Child(AGENT, "start a process for the agent", EPITAPH),
        Call(REBOOT, (*REBOOT_MAGIC, POWER_OFF), "switch the machine off"),
    ]


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> Call:
    """mount(2)."""
    return Call(MOUNT, (source, target, fstype, flags, data), f"mount {source} on {target}")


def chdir(path: str) -> Call:
    """chdir(2)."""
    return Call(CHDIR, (path,), f"enter {path}")


def mkdir(path: str, mode: int) -> Call:
    """mkdir(2)."""
    return Call(MKDIR, (path, mode), f"make {path}")


def load(path: str) -> list[Call]:
    """Loads one kernel module; its file gets the lowest free descriptor, which is known."""
    return [
        Call(OPEN, (path, 0), f"open {path}"),
        Call(FINIT_MODULE, (FIRST_FREE_FD, "", 0), f"load {path}"),
        Call(CLOSE, (FIRST_FREE_FD,), f"close {path}"),
    ]
