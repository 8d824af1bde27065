# SPDX-License-Identifier: Apache-2.0
"""Golden traces: what goes into a pod, and every record that comes out.

A trace is a text file. A line that starts at the margin is an input, an indented line is what it led to, `# ` starts a
comment, `== title` begins another pod. An input after `~ ` is given without showing its records: for getting somewhere.
Set KATA_FSM_REWRITE=1 to rewrite the indented lines from what the code does now: only commit the rewrite if you
understand it.

    create [NETWORK-MODEL] | add C | attach P | exec C E | start C | pause C | resume C | kill C N | delete C [--force]
    stop [--force] CAUSE | resolve REASON | abandon P | change WHAT
    done KIND [SUBJECT] | fail KIND [SUBJECT] | settle [N]      (settle: the outstanding effects succeed, and what follows)
    saw vm_died|agent_lost|share_died CAUSE | saw exited P CODE [CAUSE] | saw drained P | saw rebooted
    states
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.errors import CallerError
from kata_fsm.machines import Cause, Moved, Pod, check, decide, evolve, outstanding
from kata_fsm.machines import vocab as v
from kata_fsm.machines.pod import POD_MACHINES, moved_from_body

HERE = Path(__file__).parent
REWRITE = os.environ.get("KATA_FSM_REWRITE") == "1"
SHOWN_FACTS = ("cause", "exit_code", "force", "condemned", "undelivered", "discard_failed", "error", "resolved", "left")


def _observation(words: list[str]) -> v.Observation:
    match words:
        case ["vm_died", kind]:
            return v.VmDied(Cause(kind, "wait status 9", {"signal": 9}))
        case ["agent_lost", kind]:
            return v.AgentLost(Cause(kind))
        case ["share_died", kind]:
            return v.ShareDied(Cause(kind))
        case ["exited", subject, code, *kind]:
            return v.ProcessExited(subject, int(code), Cause(*kind or ["exited"]))
        case ["drained", subject]:
            return v.Drained(subject)
        case ["rebooted"]:
            return v.HostRebooted("another-boot")
    raise ValueError(f"`saw` does not know {words}")


def parse(line: str) -> v.Input:
    """One line at the margin as an input. Raises `ValueError` if it is none."""
    words = line.split()
    force = "--force" in words
    match [word for word in words if word != "--force"]:
        case ["create", *model]:
            config = {"root": "/run/x", **({"network_model": model[0]} if model else {})}
            return v.CreateSandbox("pod", "0123456789ab", config, {"rootfs": "/r"})
        case ["change", what]:
            return v.ChangeNetwork({what: True})
        case ["add", subject]:
            return v.CreateContainer(subject, {"rootfs": "/r"})
        case ["attach", subject]:
            return v.AttachShim(subject, {"pid": 42})
        case ["exec", subject, name]:
            return v.Exec(subject, f"{subject}/{name}", {})
        case ["exec", subject, name, "shim"]:
            return v.Exec(subject, f"{subject}/{name}", {}, {"pid": 42})
        case ["start", subject]:
            return v.Start(subject)
        case ["pause", subject]:
            return v.Pause(subject)
        case ["resume", subject]:
            return v.Resume(subject)
        case ["kill", subject, number]:
            return v.Kill(subject, int(number))
        case ["delete", subject]:
            return v.Delete(subject, force)
        case ["stop", cause]:
            return v.StopSandbox(Cause(cause), force)
        case ["resolve", reason]:
            return v.ResolveSandbox(reason)
        case ["abandon", subject]:
            return v.AbandonProcess(subject, Cause("client_gone"))
        case ["done", kind, *subject]:
            return v.EffectDone(kind, "".join(subject))
        case ["fail", kind, *subject]:
            return v.EffectFailed(kind, "".join(subject), "some_phase", "it did not work")
        case ["saw", *rest]:
            return _observation(rest)
    raise ValueError(f"not an input: `{line}`")


def _shown(facts: v.Facts) -> str:
    """The facts that tell the story; a cause by its kind, an error by its message."""
    short: dict[str, Any] = {key: facts[key] for key in SHOWN_FACTS if key in facts}
    if "cause" in short:
        short["cause"] = short["cause"]["kind"]
    if "error" in short:
        short["error"] = (short["error"] or {}).get("message")
    return f"  {json.dumps(short)}" if short else ""


def _record(draft: v.Draft) -> str:
    if draft.kind != "event":
        subject = draft.body.get("subject", "") if draft.kind in ("intent", "outcome") else ""
        marks = ["failed"] if draft.body.get("ok") is False else []
        marks += ["late: moves nothing"] if draft.body.get("late") else []
        return " ".join(filter(None, [f"{draft.kind:7}", draft.type, subject, *(f"({mark})" for mark in marks)]))
    move: Moved = moved_from_body(draft.body)
    name = f"{move.machine} {move.subject}".strip()
    rule = f"  [{move.rule}]" if move.rule else ""
    return f"event   {name}: {move.source} --{move.trigger}--> {move.dest}{rule}{_shown(move.facts)}"


def _states(pod: Pod) -> str:
    words = [f"{name} {getattr(pod, name).state}" for name in POD_MACHINES]
    words += [f"{subject} {unit.state}" for subject, unit in (*pod.containers.items(), *pod.processes.items())]
    return ", ".join(words)


class Player:
    """Plays the inputs of a trace and answers the lines that they lead to."""

    def __init__(self) -> None:
        self.pod = Pod()

    def give(self, given: v.Input) -> Iterator[str]:
        try:
            step = decide(self.pod, given)
        except CallerError as error:
            yield f"refused: {error}"
            return
        for draft in step.records:
            yield _record(draft)
            if draft.kind == "event":
                move = moved_from_body(draft.body)
                assert check(self.pod, move) is None
                self.pod = evolve(self.pod, move)

    def settle(self, most: int) -> Iterator[str]:
        for _ in range(most):
            if not (wanted := outstanding(self.pod)):
                return
            yield from self.give(v.EffectDone(wanted[0].kind, wanted[0].subject))

    def line(self, line: str) -> Iterator[str]:
        words = line.split()
        if words == ["states"]:
            yield _states(self.pod)
        elif words[0] == "settle":
            yield from self.settle(int(words[1]) if len(words) > 1 else 200)
        else:
            yield from self.give(parse(line))


def play(text: str) -> str:
    """The trace as it should read: its inputs and comments, each input with what it leads to now."""
    player, out = Player(), []
    for line in text.splitlines():
        if line.startswith(" "):
            continue
        out.append(line)
        if line.startswith("== "):
            player = Player()
        elif line and not line.startswith("#"):
            quiet = line.startswith("~ ")
            lines = list(player.line(line.removeprefix("~ ")))
            assert not (quiet and any(shown.startswith("refused") for shown in lines)), f"{line}: {lines}"
            out += [] if quiet else [f"    {shown}" for shown in lines]
    return "\n".join(out) + "\n"


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda path: path.stem)
def test_a_trace_reads_as_it_was_committed(path: Path) -> None:
    """The order of records, the coupling rules that fired and the words of refusals do not change unnoticed."""
    committed = path.read_text(encoding="utf-8")
    played = play(committed)
    if REWRITE:
        path.write_text(played, encoding="utf-8")
        return
    assert played == committed, "KATA_FSM_REWRITE=1 rewrites it: only commit the rewrite if you understand it"


def test_there_are_traces() -> None:
    """An empty directory would pass."""
    assert len(list(HERE.glob("*.txt"))) >= 10
