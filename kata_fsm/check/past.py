# SPDX-License-Identifier: Apache-2.0
"""What earlier sandboxes left: the journal's health, and what is on the host that no living sandbox owns."""

from __future__ import annotations

import json
import os
import subprocess

from kata_fsm import spawn
from kata_fsm.check.item import Item
from kata_fsm.control import lock_is_free
from kata_fsm.effects import mounts
from kata_fsm.effects.hypervisor import argv
from kata_fsm.effects.process import argv_of
from kata_fsm.world import Paths, journal_dir, run_dir

VERIFY_S = 120.0
_UUID = argv.uuid_of("")


def journal() -> Item:
    """Verified by `journal verify` in a process of its own: what a damaged page does to LMDB ends only that one."""
    path = journal_dir()
    expected = "readable, its chain intact"
    fix = "`kata-fsm journal verify` says what is wrong, `kata-fsm journal salvage` reads what is left"
    if not os.access(os.path.dirname(path) or "/", os.X_OK) and os.geteuid():
        return Item(
            name="journal", verdict="untold", found=f"`{path}` may not be read", expected=expected, fix="run as root"
        )
    if not os.path.exists(path):
        return Item(name="journal", verdict="ok", found=f"none yet at `{path}`", expected=expected)
    command = [*spawn.command("journal", "verify", "--quick")]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=VERIFY_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Item(
            name="journal", verdict="warning", found=f"not verified within {VERIFY_S:g} s", expected=expected, fix=fix
        )
    words = " ".join((done.stdout or done.stderr).split())[:200] or f"exit code {done.returncode}"
    return Item(
        name="journal", verdict="ok" if done.returncode == 0 else "cannot", found=words, expected=expected, fix=fix
    )


def _uids() -> list[str]:
    try:
        return sorted(os.listdir(run_dir() + "/sandboxes"))
    except OSError:
        return []


def _machines() -> dict[str, int]:
    """The uid in the command line of every QEMU that has its sockets in our run directory, to its pid."""
    found = {}
    base = f"{run_dir()}/sandboxes/"
    for name in os.listdir("/proc"):
        if name.isdigit():
            words = argv_of(int(name))
            uids = [word[len(_UUID) :] for word in words if word.startswith(_UUID) and len(word) == len(_UUID) + 12]
            if uids and any(f"{base}{uids[0]}/" in word for word in words):
                found[uids[0]] = int(name)
    return found


def _recorded() -> dict[str, bool]:
    """The uid of every sandbox that the journal's projections know, to whether it lives."""
    from journal import JournalError, peek

    found: dict[str, bool] = {}
    try:
        with peek.open(journal_dir()) as reader:
            rows = reader.scan()
    except (OSError, JournalError):
        return found
    for _, value in rows:
        try:
            fields = json.loads(value)
        except ValueError:
            continue
        if isinstance(fields, dict) and "uid" in fields:
            uid = str(fields["uid"])
            found[uid] = found.get(uid, False) or bool(fields.get("live"))
    return found


def leftovers(*, readable: bool) -> Item:
    """Sandboxes that nobody supervises; machines, directories and mounts without a sandbox. `readable`: whether the journal
    is sound enough to be asked."""
    if os.geteuid() != 0 and os.path.exists(run_dir()) and not os.access(run_dir() + "/sandboxes", os.R_OK):
        return Item(
            name="leftovers",
            verdict="untold",
            found=f"`{run_dir()}` may not be read",
            expected="none",
            fix="run as root",
            needed=False,
        )
    recorded = _recorded() if readable else {}
    uids, base = _uids(), os.path.realpath(run_dir()) + "/sandboxes/"
    mounted = {mount.point[len(base) :].partition("/")[0] for mount in mounts.table() if mount.point.startswith(base)}
    words = [
        f"sandbox `{uid}` lives and has no supervisor"
        for uid, lives in recorded.items()
        if lives and lock_is_free(Paths(uid).supervisor_lock)
    ]
    if readable:
        words += [f"directory of `{uid}`, which is not in the journal" for uid in uids if _is_stray(uid, recorded)]
    words += [f"QEMU {pid} of `{uid}`" for uid, pid in _machines().items() if uid not in uids]
    words += [f"mounts of `{uid}`" for uid in sorted(mounted - set(uids))]
    return Item(
        name="leftovers",
        verdict="warning" if words else "ok",
        found=", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "") or "none",
        expected="none",
        fix="`kata-fsm list` recovers sandboxes that live; end and remove the rest by hand",
        needed=False,
    )


def _is_stray(uid: str, recorded: dict[str, bool]) -> bool:
    """Whether nobody knows this directory; one that is just being made has a supervisor already."""
    return uid not in recorded and lock_is_free(Paths(uid).supervisor_lock)


def as_json(items: list[Item], *, can: bool) -> str:
    """The report for programs: {"format": 1, "able": bool, "items": [...]}."""
    import msgspec

    return json.dumps({"format": 1, "able": can, "items": msgspec.to_builtins(items)}, indent=2)
