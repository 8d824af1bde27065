# SPDX-License-Identifier: Apache-2.0
"""journal: durable steps against a plain file, SQLite and `eventsourcing`; many writers; reading, folding, opening.

The steps are those of one container's life (`bench/life.py`): one to ten records with up to two projections. All stores
lie on one file system, that of the temporary directory, and take their steps in turn. `eventsourcing` is an optional
package (`sh scripts/setup --bench`).
"""

from __future__ import annotations

import hashlib
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import msgspec

from bench import journal_size
from bench.kit import ROOT, BenchError, Kit, say
from bench.life import Step, life
from bench.report import AT_LEAST, AT_MOST, Claim, Report, Series, ratio
from bench.stores import STORES, WAITING, Writer
from journal import Journal
from journal.records import Record
from kata_fsm.machines import Moved, fold
from kata_fsm.snapshots import load

RUNS = 5
STEPS = 400  # of each store in each run
WRITERS = 8
CROWDS = ("journal", WAITING, "sqlite")
WRITERS_S = 2.0
READ = 100_000
RECORDS = 1_000_000


def run(kit: Kit, runs: int) -> Report:
    steps = life(_new(kit, "life"))
    report = Report("journal")
    _steps(kit, runs, steps, report)
    _writers(kit, runs, steps, report)
    small, large = journal_size.installations(kit, steps, RECORDS)
    try:
        with Journal.open(large.journal, read_only=True) as journal:
            _reading(journal, runs, report)
        journal_size.measure(kit, runs, small, large, report)
    finally:
        small.close()
        large.close()
    return report


def _new(kit: Kit, name: str) -> Path:
    directory = kit.base / "journal" / name
    directory.mkdir(parents=True)
    return directory


def _steps(kit: Kit, runs: int, steps: list[Step], report: Report) -> None:
    """One step of each store in turn."""
    writers: dict[str, Writer] = {}
    for name, store in STORES.items():
        if name == WAITING:
            continue  # who is alone waits for nobody
        try:
            writers[name] = Writer(store(_new(kit, f"step-{list(STORES).index(name)}")), steps, "s")
        except ImportError:
            report.notes.append(f"`{name}` is not installed, and was not measured: sh scripts/setup --bench")
    took = {name: Series(f"durable step, {name}", "ms", []) for name in writers}
    cpu = Series("processor time of a durable step, journal", "ms", [])
    for number in range(STEPS * runs):
        for name, writer in writers.items():
            before = time.process_time()
            ms = writer.step() * 1e3
            if number:
                took[name].samples.append(ms)
                if name == "journal":
                    cpu.samples.append((time.process_time() - before) * 1e3)
    say(f"journal: {STEPS * runs} steps of each store")
    report.series += [*took.values(), cpu]
    report.claims.append(Claim("durable step / plain file", AT_MOST, 2.5, ratio(took["journal"], took["file"])))
    for name in took:
        if name not in ("file", "journal"):
            report.notes.append(f"durable step, {name} / plain file: {ratio(took[name], took['file']):.2f} times")
    alone = ratio(took["journal"], took["lmdb alone"])
    report.notes.append(f"ours takes {alone:.2f} times LMDB alone, for its lock, its checks and its digests")
    twice = ratio(took["journal"], took["file, two flushes"])
    report.notes.append(
        f"LMDB flushes its pages and then the page that names them: no journal over it is faster than a file with two "
        f"flushes, of which ours takes {twice:.2f} times"
    )
    records = statistics.mean(len(step.records) for step in steps)
    size = statistics.mean(len(step.all_bytes) for step in steps)
    report.notes.append(f"a step has {records:.1f} records and {size:.0f} bytes")


def _writers(kit: Kit, runs: int, steps: list[Step], report: Report) -> None:
    """One writer and many, of the journal, of it behind the kernel's lock, and of SQLite, in turn."""
    path = kit.base / "journal" / "steps.pickle"
    path.write_bytes(pickle.dumps(steps))
    rates = {
        (name, count): Series(f"{count} writer{'s' if count > 1 else ''}, {name}", "steps/s", [])
        for name in CROWDS
        for count in (1, WRITERS)
    }
    fair = {name: Series(f"slowest / fastest of {WRITERS} writers, {name}", "", []) for name in CROWDS}
    for number in range(runs):
        for (name, count), series in rates.items():
            counts = _crowd(name, _new(kit, f"{name}-{count}-{number}"), path, count)
            series.samples.append(sum(counts) / WRITERS_S)
            if count > 1:
                fair[name].samples.append(min(counts) / max(counts))
        say(f"journal: writers {number + 1}/{runs}")
    report.series += [*rates.values(), *fair.values()]
    together = ratio(rates["journal", WRITERS], rates["journal", 1])
    report.claims += [
        Claim(f"{WRITERS} writers together / one", AT_LEAST, 0.8, together),
        Claim(f"slowest / fastest of {WRITERS} writers", AT_LEAST, 0.25, fair["journal"].median),
    ]
    for name in CROWDS[1:]:
        theirs = ratio(rates[name, WRITERS], rates[name, 1])
        report.notes.append(
            f"{name}: {WRITERS} writers together {theirs:.2f} of one, slowest / fastest {fair[name].median:.3f}"
        )


def _crowd(name: str, directory: Path, life_path: Path, count: int) -> list[int]:
    """How many steps each of `count` processes made at once."""
    argv = [sys.executable, "-m", "bench.stores", name, str(directory)]
    writers = [
        subprocess.Popen(
            [*argv, str(number), str(life_path), str(WRITERS_S)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(count)
    ]
    counts = []
    try:
        for writer in writers:
            assert writer.stdout is not None
            if writer.stdout.readline() != b"ready\n":
                raise BenchError(f"a writer of {name} did not get going")
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write(b"\n")
            writer.stdin.flush()
        for writer in writers:
            out, _ = writer.communicate(timeout=60)
            counts.append(int(out))
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    return counts


def _reading(journal: Journal, runs: int, report: Report) -> None:
    """Reading, the least that reading can be, folding what was read, and loading streams, in turn.

    Per second of processor time: nothing here waits for anything, and what others take of the processor is not counted.
    """
    decoder, moved = msgspec.json.Decoder(Record), msgspec.json.Decoder(Moved)
    events = [moved.decode(r.body) for r in journal.read(1, READ) if r.kind == "event"]
    streams = [info.stream for info in islice(journal.streams(), READ // 50)]
    inside = sum(journal.rev(stream) for stream in streams)
    env = journal._env

    def read() -> int:
        return sum(1 for _ in journal.read(1, READ))

    def least() -> int:
        """LMDB's cursor, SHA-256 and msgspec of the same records: no check, nothing kept, no Python that can go."""
        with env.read() as txn, txn.cursor(env.tables.records) as cursor:
            for value in islice(cursor.iternext(keys=False), READ):
                text = value[65:]
                hashlib.sha256(text).hexdigest()
                decoder.decode(text)
        return READ

    def folded() -> int:
        fold(events)
        return len(events)

    def loaded() -> int:
        for stream in streams:
            load(journal, stream)
        return inside

    work: dict[str, Callable[[], int]] = {
        "records read": read,
        "records through cursor, SHA-256 and decoder alone": least,
        "events folded": folded,
        "records of streams read, decoded and folded": loaded,
    }
    rates = {name: Series(name, "k/s CPU", []) for name in work}
    for number in range(runs + 1):
        for name, one in work.items():
            started = time.process_time()
            count = one()
            if number:
                rates[name].samples.append(count / (time.process_time() - started) / 1e3)
    say(f"journal: {runs} rounds of reading")
    read_rate, floor, _, load_rate = rates.values()
    report.series += list(rates.values())
    report.claims += [
        Claim("records read, checked and decoded", AT_LEAST, 500, read_rate.median, "k/s CPU"),
        Claim("records read, decoded and folded", AT_LEAST, 150, load_rate.median, "k/s CPU"),
    ]
    size = statistics.mean(len(journal.get_text(seq) or b"") + 65 for seq in range(1, 1000))
    report.notes.append(
        f"reading cannot be faster than LMDB's cursor, SHA-256 and the decoder are on {size:.0f} bytes each: "
        f"{floor.median:.0f} k/s here, of which it reaches {ratio(read_rate, floor):.2f}"
    )
