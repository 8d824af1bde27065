# SPDX-License-Identifier: Apache-2.0
"""What earlier sandboxes left: the journal's health, and what is on the host that no living sandbox owns."""

from __future__ import annotations

import json
import os
import subprocess

from journal import JournalError
from kata_fsm import spawn
from kata_fsm.check.item import Item, Verdict
from kata_fsm.errors import KataFsmError
from kata_fsm.survey.surveying import survey
from kata_fsm.world import WORLD, journal_dir

VERIFY_S = 120.0


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


def leftovers() -> Item:
    """What `kata-fsm recover` would do: sandboxes that nobody looks after, and what no sandbox accounts for."""
    if os.geteuid() != 0:
        return _left("untold", "only root may look", "run as root")
    try:
        found = survey(WORLD, WORLD.host_id())
    except (JournalError, KataFsmError, OSError) as error:
        return _left("untold", f"nobody can say what belongs to whom: {error}", "see the item `journal`")
    if found.foreign:
        words = f"the journal belongs to `{found.foreign}`, and this is `{WORLD.host_id()}`"
        return _left("cannot", words, "give this host a journal of its own (KATA_FSM_JOURNAL)", needed=True)
    pending = [plan for plan in found.plans if plan.pending]
    words_of = [f"sandbox `{plan.sandbox}` ({plan.uid}) is {plan.kind}" for plan in pending]
    words_of += [f"{len(orphan.traces)} traces of `{orphan.uid}`: {orphan.why}" for orphan in found.orphans]
    shown = ", ".join(words_of[:5]) + (f" and {len(words_of) - 5} more" if len(words_of) > 5 else "")
    fix = "`kata-fsm recover` shows the plan, `kata-fsm recover --apply --orphans kill` carries it out"
    return _left("warning" if words_of else "ok", shown or "none", fix)


def _left(verdict: Verdict, found: str, fix: str, *, needed: bool = False) -> Item:
    return Item(name="leftovers", verdict=verdict, found=found, expected="none", fix=fix, needed=needed)


def as_json(items: list[Item], *, can: bool) -> str:
    """The report for programs: {"format": 1, "able": bool, "items": [...]}."""
    import msgspec

    return json.dumps({"format": 1, "able": can, "items": msgspec.to_builtins(items)}, indent=2)
