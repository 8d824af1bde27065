# SPDX-License-Identifier: Apache-2.0
"""Lives of real sandboxes, several at a time, whose processes are killed at random: all converges, and nothing is left.

`python -m tests.soak [--lives N] [--parallel N] [--seed S]`: needs root and the guest image. Exit code 0 when everything
held, 1 when something did not, which is then said. What is killed and when comes from the seed; what meets what does not.

Beside the lives stands one sandbox that is never harmed and that is asked for an exec over and over, and followers of its
log and of the journal: their memory and descriptors are compared at the end with what they were after a while.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from kata_fsm.testing.bundle import make_rootfs
from tests.support import names
from tests.support.kata import GONE_S, Kata, Traces, clean_up_by_force, kill_rest, leaks
from tests.support.soaking import Life, Steady

OWN_GROWTH_MIB_MAX = 4.0
FD_GROWTH_MAX = 2


class Soak:
    """All lives of one run. `wrong` collects what did not hold."""

    def __init__(self, kata: Kata, seed: str) -> None:
        self.kata = kata
        self.seed = seed
        self.wrong: list[str] = []
        self.kills: dict[str, int] = {}
        self.causes: dict[str, int] = {}
        self.over = 0
        self._lock = threading.Lock()

    def live(self, number: int, pace_s: float) -> None:
        """One life; its findings are added up."""
        life = Life(self.kata, f"life{number}", random.Random(f"{self.seed}/{number}"), pace_s)
        try:
            life.live()
        except Exception as error:
            life.wrong.append(f"{type(error).__name__}: {error}")
        with self._lock:
            self.over += 1
            self.wrong += [f"{life.name}: {what}" for what in life.wrong]
            for kill in life.kills:
                self.kills[kill] = self.kills.get(kill, 0) + 1
            self.causes[life.cause] = self.causes.get(life.cause, 0) + 1
            say(f"life {number}: killed {', '.join(life.kills) or 'nothing'}; cause {life.cause}; {life.seconds:.0f} s")


def say(text: str) -> None:
    """Tell whoever waits."""
    print(text, flush=True)


def settled(kata: Kata, traces: Traces, before: dict[str, set[str]]) -> list[str]:
    """What is left once nothing changes any more."""
    deadline = time.monotonic() + 2 * GONE_S
    while (left := leaks(kata, traces, before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def verified(kata: Kata) -> list[str]:
    """What `journal verify`, `list` and `recover` have to say against it."""
    wrong = []
    for verb, args in (("journal", ["verify"]), ("recover", [])):
        done = kata(verb, *args, check=False)
        said = (done.stdout + done.stderr).strip()
        say(f"{verb} {' '.join(args)}: {said.splitlines()[-1] if said else ''}")
        if done.returncode or (verb == "recover" and "nothing to do" not in said):
            wrong.append(f"`{verb} {' '.join(args)}` exited {done.returncode}: {said[-500:]}")
    listed = kata("list", "--quiet").stdout.split()
    return wrong + ([f"still listed: {listed}"] if listed else [])


def soak(kata: Kata, lives: int, parallel: int, seed: str) -> list[str]:
    """All of it; what did not hold."""
    traces = Traces(kata.base)
    before = traces.snapshot()
    steady = Steady(kata)
    pace_s = steady.begin()
    say(f"seed {seed}: {lives} lives, {parallel} at a time; a creation takes {pace_s:.1f} s here")
    run = Soak(kata, seed)
    warm = max(1, min(lives // 4, parallel * 2))  # by then caches are full, and so are pools
    with ThreadPoolExecutor(parallel) as pool:
        for _ in pool.map(lambda number: run.live(number, pace_s), range(warm)):
            pass
        first = steady.measured()
        for _ in pool.map(lambda number: run.live(number, pace_s), range(warm, lives)):
            pass
    last = steady.measured()
    wrong = run.wrong + steady.end()
    say(
        f"kills: {dict(sorted(run.kills.items()))}; causes: {dict(sorted(run.causes.items()))}; execs beside: {steady.execs}"
    )
    for name in first:
        a, b = first[name], last[name]
        say(
            f"{name}: its own {a.own:.1f} -> {b.own:.1f} MiB, PSS {a.pss:.1f} -> {b.pss:.1f} MiB, fds {a.fds} -> {b.fds}"
        )
        if (b.own - a.own > OWN_GROWTH_MIB_MAX and name != "qemu") or b.fds - a.fds > FD_GROWTH_MAX:
            wrong.append(f"{name} has grown")
    left = settled(kata, traces, before)
    processes = sum(each.startswith("process") for each in left)
    say(
        f"left: {processes} processes, {len(left) - processes} directories, mounts, namespaces, links, sockets and cgroups"
    )
    return [*wrong, *(f"left: {each}" for each in left), *verified(kata)]


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--lives", type=int, default=12, metavar="N")
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="at a time")
    parser.add_argument("--seed", default=os.urandom(4).hex(), help="what is killed and when")
    parser.add_argument(
        "--keep", action="store_true", help="keep the installation, journal and logs, when something is wrong"
    )
    options = parser.parse_args()
    if options.lives < 1 or options.parallel < 1:
        parser.error("--lives, --parallel: at least 1")
    base = names.directory()
    made = make_rootfs(base / "rootfs")
    kata, begun, wrong = Kata(base, made), time.monotonic(), ["it did not come to its end"]
    try:
        wrong = soak(kata, options.lives, options.parallel, options.seed)
    except subprocess.SubprocessError as error:
        wrong = [str(error)]
    finally:
        clean_up_by_force(kata)
        kill_rest(kata)
        if wrong and options.keep:
            say(f"kept: {base}")
        else:
            shutil.rmtree(base, ignore_errors=True)
    for what in wrong:
        say(f"WRONG {what}")
    say(
        f"{'failed' if wrong else 'ok'}: {options.lives} lives in {time.monotonic() - begun:.0f} s, seed {options.seed}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
