# SPDX-License-Identifier: Apache-2.0
"""Faults of the file itself: a flipped byte anywhere, a file cut anywhere, a user who may not read it.

By default a few thousand bytes are flipped, of every class some and of small classes all; with `KATA_FSM_FAULTS=all`
in the environment every byte that means something is.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from journal import Journal, JournalDamaged, JournalError, JournalMissing, peek, verify_path
from journal.salvage import salvage
from journal.structure import flaws
from tests.support import damaged
from tests.support.forked import each_in_child, in_child
from tests.support.lmdb_bytes import FREE_AGE, META_FLAG, PAD, UNUSED, classes

ALL = os.environ.get("KATA_FSM_FAULTS") == "all"
PER_CLASS = 40
NOBODY = 65534
MEMORY = "/dev/shm"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The data file of a small journal."""
    path = str(tmp_path_factory.mktemp("whole") / "journal")
    damaged.make(path)
    return Path(path, "data.mdb").read_bytes()


@pytest.fixture
def copy(tmp_path: Path, whole: bytes) -> str:
    """A directory with that file, in memory where there is some."""
    return damaged.copy_to(tmp_path / "copy", whole)


def _offsets(whole: bytes) -> list[int]:
    """The offsets to flip, of every class some, in order."""
    by_class = defaultdict(list)
    for offset, name in enumerate(classes(whole)):
        by_class[name].append(offset)
    unused = by_class.pop(UNUSED)
    draw = random.Random(3)
    found = draw.sample(unused, 200)
    for offsets in by_class.values():
        found += offsets if ALL or len(offsets) <= PER_CLASS else draw.sample(offsets, PER_CLASS)
    return sorted(found)


def _is_right(name: str, mask: int, verdict: str) -> bool:
    """Whether that may become of a byte of this class."""
    if verdict == "fold":  # no digest covers a projection: whoever knows the fold compares
        return name in ("projections key", "projections value", "projections node")
    if verdict == "same":
        # A separator may be any key between the last one left and the first one right of it, which the audit proves.
        return name in (UNUSED, FREE_AGE, PAD) or name.endswith("separator") or (name == META_FLAG and mask != 0x08)
    return name != UNUSED and verdict.startswith(("found", "refused"))


def test_a_flipped_byte_is_found_or_provably_outside_the_data(copy: str, whole: bytes) -> None:
    sound, projections, folded = damaged.read_all(copy)
    assert projections == folded
    assert flaws(copy) == []
    names, offsets = classes(whole), _offsets(whole)
    draw = random.Random(4)
    masks = {offset: 1 << draw.randrange(8) for offset in offsets}
    file = os.open(f"{copy}/data.mdb", os.O_RDWR)

    def flip(offset: int) -> str:
        os.pwrite(file, whole, 0)
        os.pwrite(file, bytes([whole[offset] ^ masks[offset]]), offset)
        return damaged.judge(copy, sound)

    told = each_in_child(flip, offsets)
    os.close(file)
    verdicts = Counter(verdict.split()[0] for verdict in told)
    wrong = [
        f"byte {offset} ({names[offset]}) with mask {masks[offset]:#x}: {verdict}"
        for offset, verdict in zip(offsets, told, strict=True)
        if not _is_right(names[offset], masks[offset], verdict)
    ]
    assert not wrong, "\n".join(wrong)
    print(f"\n{len(offsets)} flipped bytes: {dict(verdicts)}")
    assert len(offsets) > 1_500
    assert verdicts["found"] > 1_000


def test_all_bytes_outside_the_data_at_once_change_nothing(copy: str, whole: bytes) -> None:
    """Not even together: nobody looks at them."""
    sound, _, _ = damaged.read_all(copy)
    noise = random.Random(5)
    names = classes(whole)
    for mask in (lambda _: 0xFF, lambda _: noise.randrange(256)):
        changed = bytes(byte ^ mask(byte) if name == UNUSED else byte for byte, name in zip(whole, names, strict=True))
        damaged.copy_to(copy, changed)
        assert in_child(lambda: damaged.judge(copy, sound)) == "same"
    assert names.count(UNUSED) > 10_000


def test_a_file_cut_anywhere_is_refused_and_what_is_left_can_be_salvaged(copy: str, whole: bytes) -> None:
    with Journal.open(copy, read_only=True) as journal:
        stored = {record.seq: record.digest for record in journal.read()}
    page = 4096
    draw = random.Random(6)
    sizes = {*range(page, len(whole), page), *(draw.randrange(1, len(whole)) for _ in range(60)), len(whole) - 1, 1}

    def cut(size: int) -> str:
        damaged.copy_to(copy, whole[:size])
        for opener in (peek.open, lambda path: Journal.open(path, read_only=True), Journal.open):
            try:
                opener(copy).close()
            except JournalDamaged:
                continue
            finally:
                for name in set(os.listdir(copy)) - {"data.mdb"}:
                    os.unlink(f"{copy}/{name}")
            return f"{opener} opened it"
        assert Path(copy, "data.mdb").read_bytes() == whole[:size], "it was written to"
        assert [finding.kind for finding in verify_path(copy)] == ["structure"]
        found = salvage(copy)
        assert all(stored[record.seq] == record.digest for record in found.records)
        assert len(found.records) + sum(last - first + 1 for first, last in found.missing) <= len(stored)
        return f"refused, {len(found.records)}"

    told = each_in_child(cut, sorted(sizes))
    assert [verdict for verdict in told if not verdict.startswith("refused")] == []
    print(f"\n{len(told)} cuts, {sum(int(verdict.split()[1]) for verdict in told)} records salvaged in all")
    assert int(told[-1].split()[1]) > len(stored) // 2


def test_a_journal_that_others_own_is_refused_in_words(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    place = tmp_path / "place"
    place.mkdir()
    path = str(place / "journal")
    with Journal.open(path):
        pass
    # pytest's directories are closed to others: a bind of the right to enter is simplest in a place of one's own
    shared = Path(shutil.move(str(place), f"{MEMORY}/{os.path.basename(tmp_path)}-{os.getpid()}"))
    path = str(shared / "journal")
    shared.chmod(0o755)

    def attempt(case: object) -> str:
        mode, file_mode = case  # type: ignore[misc]
        os.chmod(path, mode)
        os.chmod(f"{path}/data.mdb", file_mode)
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        told = []
        for opener in (
            peek.open,
            lambda path: Journal.open(path, read_only=True),
            Journal.open,
            lambda path: list(verify_path(path)),
            salvage,
        ):
            try:
                opener(path)
            except JournalMissing as error:
                return f"taken for missing: {error}"
            except JournalError as error:
                told.append(type(error).__name__ + (" may not be read" if "may not be read" in str(error) else ""))
            else:
                told.append("opened")
        return ", ".join(told)

    try:
        told = {
            case: in_child(lambda case=case: attempt(case))
            for case in [(0o700, 0o600), (0o755, 0o600), (0o600, 0o644), (0o755, 0o644)]
        }
    finally:
        shutil.rmtree(shared)
    unreadable = "JournalError may not be read"
    assert told == {
        (0o700, 0o600): ", ".join([unreadable] * 4 + ["JournalError"]),
        (0o755, 0o600): ", ".join([unreadable] * 4 + ["JournalError"]),
        (0o600, 0o644): ", ".join([unreadable] * 4 + ["JournalError"]),
        (0o755, 0o644): "opened, opened, JournalReadOnly, opened, opened",
    }
