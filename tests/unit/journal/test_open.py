# SPDX-License-Identifier: Apache-2.0
"""Opening: modes, descriptors, read-only places, foreign files, newer formats, what a fast reader imports."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from journal import (
    Journal,
    JournalDamaged,
    JournalError,
    JournalInUse,
    JournalMissing,
    JournalReadOnly,
    JournalVersionError,
    NewRecord,
    layout,
    peek,
)

ROOT = Path(__file__).resolve().parents[3]


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_the_directory_is_0700_and_files_are_0600_whatever_the_umask(path):
    before = os.umask(0)
    try:
        with Journal.open(path):
            assert mode(path) == 0o700
            files = {name: mode(f"{path}/{name}") for name in os.listdir(path)}
    finally:
        os.umask(before)
    assert files == {"data.mdb": 0o600, "lock.mdb": 0o600, "writer.lock": 0o600}


@pytest.mark.parametrize("read_only", [False, True])
def test_no_descriptor_is_inherited_by_children(path, read_only):
    Journal.open(path).close()
    with Journal.open(path, read_only=read_only):
        told = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=True
        )
        assert "->" in told.stdout
        assert path not in told.stdout


def test_nothing_is_made_unless_asked(path):
    for options in ({"read_only": True}, {"create": False}):
        with pytest.raises(JournalMissing, match=f"no journal in `{path}`"):
            Journal.open(path, **options)
    with pytest.raises(FileNotFoundError):
        peek.open(path)
    assert not os.path.exists(path)


def test_a_journal_whose_making_was_cut_short_is_missing_to_a_reader_and_made_by_a_writer(path):
    os.makedirs(f"{path}/unfinished")
    Path(path, "data.mdb").touch()
    for name in ("data.mdb", "lock.mdb"):
        Path(path, "unfinished", name).write_bytes(b"half a page")
    for opener in (peek.open, lambda path: Journal.open(path, read_only=True)):
        with pytest.raises(JournalMissing):
            opener(path)
    with Journal.open(path) as journal:
        assert journal.head().seq == 0
    assert sorted(os.listdir(path)) == ["data.mdb", "lock.mdb", "writer.lock"]


def test_a_process_has_a_journal_open_once(journal):
    with pytest.raises(JournalInUse, match="open in this process already"):
        Journal.open(journal.path)


def test_a_forked_child_may_not_use_it(journal):
    child = os.fork()
    if child == 0:
        try:
            journal.head()
        except JournalInUse:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_reader_cannot_append(path, put):
    Journal.open(path).close()
    with Journal.open(path, read_only=True) as journal, pytest.raises(JournalReadOnly):
        put(journal, "s")


def test_a_copy_is_read_without_leaving_a_trace(journal, put, tmp_path):
    put(journal, "s", "one", "two", projections={b"k": b"v"})
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(f"{journal.path}/data.mdb", copy)
    with Journal.open(copy, read_only=True) as reader:
        assert [record.type for record in reader.read()] == ["one", "two"]
        assert list(reader.verify()) == []
    with peek.open(str(copy)) as peeked:
        assert peeked.get(b"k") == b"v"
    assert os.listdir(copy) == ["data.mdb"]


def test_a_read_only_file_system_can_be_read(small_disk, put):
    path = f"{small_disk}/journal"
    with Journal.open(path) as journal:
        put(journal, "s", projections={b"k": b"v"})
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with Journal.open(path, read_only=True) as journal:
        assert [record.stream for record in journal.read()] == ["s"]
        assert list(journal.verify()) == []
    with peek.open(path) as peeked:
        assert peeked.scan(b"k") == [(b"k", b"v")]
    with pytest.raises(JournalReadOnly):
        Journal.open(path)


def test_a_foreign_file_is_no_journal_and_is_not_touched(path):
    os.mkdir(path)
    Path(path, "data.mdb").write_bytes(b"something else\n" * 1000)
    for opener in (peek.open, Journal.open, lambda path: Journal.open(path, read_only=True)):
        with pytest.raises(JournalDamaged, match="is damaged or no journal"):
            opener(path)
    assert Path(path, "data.mdb").read_bytes() == b"something else\n" * 1000


def test_a_foreign_environment_is_no_journal(path):
    with lmdb.open(path, lib_version=0) as env, env.begin(write=True) as txn:
        txn.put(b"somebody", b"else")
    with pytest.raises(JournalDamaged, match="no journal"):
        Journal.open(path)


def test_a_newer_format_is_refused_at_open_and_at_append(path, put):
    with Journal.open(path) as journal:
        put(journal, "s", projections={b"k": b"v"})
        with journal._env._env.begin(write=True) as txn:
            txn.put(layout.FORMAT_KEY, layout.FORMAT_MAGIC + b"3", db=journal._env.tables.meta)
        with pytest.raises(JournalVersionError):
            put(journal, "s")
        assert journal.head().seq == 1
    for opener in (peek.open, Journal.open, lambda path: Journal.open(path, read_only=True)):
        with pytest.raises(JournalVersionError, match="format `3`"):
            opener(path)


def test_a_path_below_a_file_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").touch()
    for opener in (Journal.open, peek.open):
        with pytest.raises(JournalError):
            opener(str(tmp_path / "file" / "journal"))


def test_peek_sees_what_was_written_while_it_is_open(path, put, start):
    with Journal.open(path) as journal:
        put(journal, "s", projections={b"c/1": b"one"})
        reader = start(
            "import sys; from journal import peek; p = peek.open(sys.argv[1])\n"
            "print(p.get(b'c/2'), flush=True); sys.stdin.read(1); print(p.get(b'c/2'), p.scan(b'c/'), flush=True)",
            path,
        )
        assert reader.stdout.readline() == b"None\n"
        put(journal, "s", projections={b"c/2": b"two", b"d": b""})
    assert reader.communicate(b"g")[0] == b"b'two' [(b'c/1', b'one'), (b'c/2', b'two')]\n"


def test_peek_imports_next_to_nothing(path, put):
    with Journal.open(path) as journal:
        put(journal, "s", projections={b"k": b"v"})
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; before = set(sys.modules); from journal import peek\n"
        "assert peek.open(sys.argv[3]).scan(b'') == [(b'k', b'v')]; print(*sorted(set(sys.modules) - before))"
    )
    site = str(Path(lmdb.__file__).parents[1])
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT), site, path], capture_output=True, text=True, check=True
    )
    standard = {"_collections_abc", "_stat", "stat", "genericpath", "os", "os.path", "posixpath"}
    engine = {"lmdb", "lmdb.cpython", "lmdb._envid"}
    assert set(told.stdout.split()) - standard - engine == {"journal", "journal.layout", "journal.peek"}


def test_the_package_imports_nothing_of_the_program(path):
    code = "import sys, journal; [getattr(journal, n) for n in journal.__all__]; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not [name for name in told.stdout.split() if name.startswith(("kata", "trio", "transitions"))]


def test_what_others_wrote_in_the_same_format_reads_the_same(journal, put, stamp):
    """The text needs nothing but a JSON parser: what this package decodes is what the standard library decodes."""
    journal.append("s", [NewRecord("event", "t", {"a": [1, {"b": "ü"}]}, {"uid": 1})], stamp=stamp, expected_rev=0)
    told, [record] = json.loads(journal.get_text(1)), journal.read()
    assert {name: getattr(record, name) for name in told if name != "body"} | {"body": record.data} == told
