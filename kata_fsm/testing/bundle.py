# SPDX-License-Identifier: Apache-2.0
"""OCI bundles with a busybox root file system, for the demonstration, the tests and the benchmarks.

`python -m kata_fsm.testing.bundle DIR [--terminal] -- COMMAND ...` makes one. Needs a statically linked busybox (Debian's
package busybox-static).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BUSYBOX = "/bin/busybox"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DIRECTORIES = ("bin", "sbin", "usr/bin", "usr/sbin", "proc", "sys", "dev", "tmp", "etc", "root", "var", "run", "mnt")
# What Docker and podman give a container by default.
_CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW"),
        *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    )
]


def make_rootfs(directory: Path) -> Path:
    """A root file system of busybox and its applets at `directory`, made if it is not there. Answers `directory`."""
    if (directory / "bin" / "sh").is_symlink():
        return directory
    for name in _DIRECTORIES:
        (directory / name).mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)  # whoever made the directory may have kept it to himself; the workload is not root
    (directory / "tmp").chmod(0o1777)
    shutil.copy2(BUSYBOX, directory / "bin" / "busybox")
    listed = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout
    for applet in listed.split():
        link = directory / "bin" / applet
        if applet != "busybox" and not link.is_symlink():
            link.symlink_to("busybox")
    (directory / "etc" / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
    )
    (directory / "etc" / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
    return directory


def config(args: Sequence[str], *, terminal: bool = False, hostname: str = "kata-fsm") -> dict[str, Any]:
    """A `config.json` as an engine would write it: own namespaces, default capabilities, the usual mounts."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": [PATH, "TERM=xterm"],
            "cwd": "/",
            "capabilities": {kind: list(_CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": hostname,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            _tmpfs("/dev", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
            _tmpfs("/dev/shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            {
                "destination": "/dev/mqueue",
                "type": "mqueue",
                "source": "mqueue",
                "options": ["nosuid", "noexec", "nodev"],
            },
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def _tmpfs(destination: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options}


def make_bundle(directory: Path, args: Sequence[str], *, terminal: bool = False, **changes: Any) -> Path:
    """A bundle at `directory`: root file system and `config.json`, whose top-level members `changes` replace."""
    directory.mkdir(parents=True, exist_ok=True)
    make_rootfs(directory / "rootfs")
    document = {**config(args, terminal=terminal), **changes}
    (directory / "config.json").write_text(json.dumps(document, indent=1))
    return directory


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="make an OCI bundle with a busybox root file system")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--terminal", action="store_true")
    parser.add_argument("args", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    if not os.access(BUSYBOX, os.X_OK):
        parser.exit(1, f"`{BUSYBOX}` is not there: install busybox-static\n")
    print(make_bundle(options.directory, options.args, terminal=options.terminal))


if __name__ == "__main__":
    main()
