# SPDX-License-Identifier: Apache-2.0
"""memory: what one idle sandbox takes on the host, process by process.

PSS from `smaps_rollup`: a page that several processes share counts for each by its part, so the parts of one sandbox add
up. What they share with others (the interpreter with this very program, for one) counts for them by their part only;
`private` is what would be free without the process. The guest's memory is shared between QEMU and virtiofsd.
"""

from __future__ import annotations

import os
import time

from bench.kit import BenchError, Kit, say
from bench.report import Report, Series

RUNS = 3
_SETTLE_S = 3.0

_ROLES = (
    ("QEMU", "qemu-system"),
    ("virtiofsd", "virtiofsd"),
    ("supervisor", "\0supervisor\0"),
    ("shim", "\0shim\0"),
)

OTHER = "other"


def processes(uid: str) -> dict[int, str]:
    """Host processes whose command line names the sandbox `uid`: pid -> role."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", encoding="utf-8", errors="replace") as file:
                line = file.read()
        except OSError:
            continue
        if uid in line:
            found[int(entry)] = next((role for role, mark in _ROLES if mark in line), OTHER)
    return found


def rollup(pid: int) -> dict[str, float]:
    """MiB by field of /proc/PID/smaps_rollup."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        rows = [line.split() for line in file if line.rstrip().endswith("kB")]
    return {row[0].rstrip(":"): int(row[1]) / 1024 for row in rows}


def measure(kit: Kit) -> dict[str, tuple[float, float, int]]:
    """One idle sandbox: role -> (PSS, private, processes), in MiB."""
    name = kit.new_id("idle")
    kit.verb("run", "--detach", "--bundle", str(kit.bundle(name, "sleep", "100000")), name)
    time.sleep(_SETTLE_S)  # the guest loads its last modules while nothing else wants the processor
    (uid,) = os.listdir(kit.run_dir / "sandboxes")
    found: dict[str, tuple[float, float, int]] = {}
    for pid, role in processes(uid).items():
        fields = rollup(pid)
        pss, private, count = found.get(role, (0.0, 0.0, 0))
        own = fields["Private_Clean"] + fields["Private_Dirty"]
        found[role] = (pss + fields["Pss"], private + own, count + 1)
    kit.delete(name)
    missing = [role for role, _ in _ROLES if role not in found]
    if missing:
        raise BenchError(f"of sandbox `{uid}` no process was found for {', '.join(missing)}")
    return found


def run(kit: Kit, runs: int) -> Report:
    """Medians by role; the total is the sum of each run."""
    rows = []
    for number in range(1, runs + 1):
        rows.append(measure(kit))
        say(f"memory {number}/{runs}: {sum(pss for pss, _, _ in rows[-1].values()):.0f} MiB")
    series, notes = [], []
    for role in sorted(rows[0], key=[*(role for role, _ in _ROLES), OTHER].index):
        count = rows[0][role][2]
        label = role + (f" ({count} processes)" if count > 1 else "")
        series.append(Series(f"PSS {label}", "MiB", [row[role][0] for row in rows]))
        private = Series(label, "MiB", [row[role][1] for row in rows])
        notes.append(f"private memory of {label}: {private.median:.1f} MiB")
    series.append(Series("PSS of the sandbox", "MiB", [sum(pss for pss, _, _ in row.values()) for row in rows]))
    return Report("memory", series, [], notes)
