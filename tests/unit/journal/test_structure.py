# SPDX-License-Identifier: Apache-2.0
"""The file is audited before LMDB sees it: what is sound passes, while others write too, and what is not never crashes."""

from __future__ import annotations

import os
import random
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from journal import Journal, JournalBusy, JournalDamaged, layout, peek, structure, verify_path
from journal.lock import WriterLock
from tests.support import damaged
from tests.support.forked import each_in_child, in_child
from tests.support.writers import fork, write

PAGE_BYTES = 4096


@pytest.fixture
def made(path: str) -> str:
    """A journal with something of everything in it, closed."""
    damaged.make(path)
    return path


def test_a_sound_journal_has_no_flaws(made: str) -> None:
    assert structure.flaws(made) == []
    assert list(verify_path(made)) == []


def test_the_frozen_journals_have_none(tmp_path: Path) -> None:
    for frozen in (Path(__file__).resolve().parents[2] / "golden").glob("journal-v*"):
        assert structure.flaws(str(frozen)) == []
        assert list(verify_path(frozen)) == []


def test_what_lmdb_makes_of_random_appends_and_deletes_is_sound_and_never_taken_for_truncated(tmp_path: Path) -> None:
    """LMDB leaves out pages at the end that a transaction took in vain: such a file is short, and whole."""
    short = 0
    for seed in range(10):
        draw = random.Random(seed)
        path = str(tmp_path / f"env-{seed}")
        with lmdb.open(path, map_size=1 << 28, max_dbs=16, lib_version=layout.ENGINE, sync=False) as env:
            tables = [env.open_db(name) for name in layout.TABLES_V1]
            keys: list[tuple[int, bytes]] = []
            for number in range(100):
                new: set[tuple[int, bytes]] = set()
                with env.begin(write=True) as txn:
                    for _ in range(draw.choice([1, 1, 3, 30, 200])):
                        if keys and draw.random() < (0.7 if number % 40 > 20 else 0.3):
                            table, key = keys.pop(draw.randrange(len(keys)))
                            txn.delete(key, db=tables[table])
                            continue
                        table, key = draw.randrange(1, 4), b"%d" % draw.randrange(10 ** draw.randrange(1, 60))
                        if (table, key) not in new:  # twice in one transaction: see structure.py
                            txn.put(key, bytes(draw.choice([0, 8, 300, 3_000, 9_000])), db=tables[table])
                            new.add((table, key))
                            keys.append((table, key))
                is_short = layout.flaw(path) != ""
                short += is_short
                assert not is_short or structure.lost_nothing(path)
                if is_short or number % 20 == 0:
                    assert structure.flaws(path) == [], (seed, number)
    assert short > 0, "nothing was shown of short files"


def test_a_short_file_is_read_and_made_whole_by_the_next_append(journal: Journal, put: Callable[..., object]) -> None:
    put(journal, "s")

    def in_vain(txn: lmdb.Transaction) -> None:
        for number in range(9):
            txn.put(b"%d" % number, bytes(9_000), db=journal._env.tables.projections)
        for number in range(9):
            txn.delete(b"%d" % number, db=journal._env.tables.projections)

    journal._env.write(in_vain)
    assert layout.flaw(journal.path) == "", "our own transactions leave no short file"
    with journal._env._env.begin(write=True) as txn:
        in_vain(txn)
        in_vain(txn)
    assert "truncated" in layout.flaw(journal.path)
    with peek.open(damaged.copy_to(journal.path + "-copy", Path(journal.path, "data.mdb").read_bytes())) as peeked:
        assert peeked.scan() == []
    assert list(verify_path(journal.path + "-copy")) == []
    put(journal, "s")
    assert layout.flaw(journal.path) == ""
    assert list(journal.verify()) == []


def test_a_truncated_file_is_told_from_a_short_one(made: str) -> None:
    size = os.stat(f"{made}/data.mdb").st_size
    os.truncate(f"{made}/data.mdb", size - PAGE_BYTES)
    assert layout.flaw(made) == f"the data file is truncated: it has `{size - PAGE_BYTES}` bytes of `{size}`"
    for opener in (peek.open, Journal.open, lambda path: Journal.open(path, read_only=True)):
        with pytest.raises(JournalDamaged, match="truncated"):
            opener(made)
    [finding] = verify_path(made)
    assert finding.kind == "structure"
    assert "truncated" in finding.detail


def test_a_journal_is_audited_while_others_write(path: str, tmp_path: Path) -> None:
    acks = tmp_path / "acks"
    acks.mkdir()
    Journal.open(path).close()
    writers = [fork(lambda n=n: write(path, f"{acks}/{n}", f"writer-{n}", n)) for n in range(2)]
    try:
        rounds, end = 0, time.monotonic() + 120
        while rounds < 15 or not all(file.stat().st_size for file in acks.iterdir()) or len(list(acks.iterdir())) < 2:
            assert list(verify_path(path)) == []
            rounds += 1
            assert time.monotonic() < end, "the writers do not get to write"
    finally:
        for writer in writers:
            os.kill(writer, 9)
            os.waitpid(writer, 0)


def test_a_flaw_is_looked_at_again_under_the_lock(made: str) -> None:
    """A writer may have been at a meta page; with the lock, nobody is."""
    _alter(made, lambda data: data[:144] + struct.pack("=Q", 1 << 40) + data[152:])
    assert [finding.kind for finding in verify_path(made)] == ["structure"]
    lock = WriterLock(f"{made}/{layout.WRITER_LOCK_FILE}")
    from journal.env import Env

    env = Env(made, read_only=True, sync=True, map_bytes=layout.MAP_BYTES)
    with lock.hold(1.0), pytest.raises(JournalBusy):
        structure.audit(env, lock_timeout_s=0.05)
    env.close()
    lock.close()


def test_an_older_state_that_poses_as_the_newest_is_found(made: str) -> None:
    """All of it is sound: only its list of free pages shows how old it is."""
    data = Path(made, "data.mdb").read_bytes()
    txns = [struct.unpack_from("=Q", data, at + 144)[0] for at in (0, PAGE_BYTES)]
    newest = 0 if txns[0] > txns[1] else PAGE_BYTES
    for txn in (min(txns) - 1, max(txns) - 2):
        _alter(made, lambda data, txn=txn: data[: newest + 144] + struct.pack("=Q", txn) + data[newest + 152 :])
        found = list(verify_path(made))
        assert [finding.kind for finding in found] == ["structure"]
        assert "last free pages" in found[0].detail
        Path(made, "data.mdb").write_bytes(data)


def test_whatever_a_page_is_filled_with_nobody_dies(made: str) -> None:
    """Pages of noise, of zeros, and of other pages: found, or not in use."""
    data = Path(made, "data.mdb").read_bytes()
    sound, _, _ = damaged.read_all(made)
    draw = random.Random(11)
    pages = len(data) // PAGE_BYTES
    copy = f"{made}-copy"

    def fill(item: object) -> str:
        page, what = item  # type: ignore[misc]
        other = draw.randrange(pages) * PAGE_BYTES
        new = (bytes(PAGE_BYTES), random.Random(page).randbytes(PAGE_BYTES), data[other : other + PAGE_BYTES])[what]
        shutil.rmtree(copy, ignore_errors=True)
        damaged.copy_to(copy, data[: page * PAGE_BYTES] + new + data[(page + 1) * PAGE_BYTES :])
        return damaged.judge(copy, sound)

    told = each_in_child(fill, [(page, what) for page in range(pages) for what in range(3)])
    kinds = {verdict.split()[0] for verdict in told}
    assert kinds <= {"found", "refused", "same", "fold"}, [verdict for verdict in told if verdict.startswith("failed")]
    assert "found" in kinds


def test_garbage_is_a_finding(path: str) -> None:
    os.mkdir(path)
    for garbage in (b"x", b"something else\n" * 1000, bytes(100_000)):
        Path(path, "data.mdb").write_bytes(garbage)
        assert in_child(lambda: str([finding.kind for finding in verify_path(path)])) == "['structure']"


def _alter(path: str, change: Callable[[bytes], bytes]) -> None:
    file = Path(path, "data.mdb")
    file.write_bytes(change(file.read_bytes()))
