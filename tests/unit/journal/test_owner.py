# SPDX-License-Identifier: Apache-2.0
"""A journal says whose it is, and is written by nobody else until it is taken over."""

import threading

import pytest

from journal import Journal, JournalForeign, layout


def test_the_first_record_names_the_owner(path, put, stamp):
    with Journal.open(path, owner=("one", stamp)) as journal:
        [record] = journal.read()
        assert (record.seq, record.stream, record.type) == (1, layout.SYSTEM_STREAM, "journal.owner")
        assert record.data == {"owner": "one"}
        assert list(journal.streams()) == []
        put(journal, "s")
    with Journal.open(path, owner=("one", stamp)) as journal:
        assert journal.head().seq == 2
        assert journal.stat().owner == "one"
        assert list(journal.verify()) == []


def test_another_may_read_it_and_not_write_it(path, put, stamp):
    with Journal.open(path, owner=("one", stamp)) as journal:
        put(journal, "s")
    with pytest.raises(JournalForeign, match="belongs to `one`, and this is `two`") as caught:
        Journal.open(path, owner=("two", stamp))
    assert caught.value.exit_code == 12
    with Journal.open(path, read_only=True) as journal:
        assert journal.head().seq == 2
    with Journal.open(path) as journal:
        record = journal.adopt("two", stamp=stamp, reason="the disk was moved")
        assert record.data == {"owner": "two", "from": "one", "reason": "the disk was moved"}
        assert list(journal.verify()) == []
    Journal.open(path, owner=("two", stamp)).close()
    with pytest.raises(JournalForeign):
        Journal.open(path, owner=("one", stamp))


def test_one_that_nobody_owned_is_owned_from_then_on(path, put, stamp):
    with Journal.open(path) as journal:
        put(journal, "s")
        assert journal.owner() is None
    with Journal.open(path, owner=("one", stamp)) as journal:
        assert (journal.owner().owner, journal.owner().seq) == ("one", 2)


def test_an_owner_that_the_records_do_not_tell_of_is_found(path, put, stamp):
    with Journal.open(path, owner=("one", stamp)) as journal:
        put(journal, "s")
        for value in (b'{"owner":"two","seq":1}', b'{"owner":"one","seq":2}', b'{"owner":"one","seq":9}', b"{"):
            with journal._env._env.begin(write=True) as txn:
                txn.put(layout.OWNER_KEY, value, db=journal._env.tables.meta)
            assert [finding.kind for finding in journal.verify()] == ["head"]


def test_of_two_that_come_at_once_one_is_the_owner(path, start, stamp):
    code = (
        "import sys; from journal import Journal, JournalForeign, Stamp\n"
        "try: Journal.open(sys.argv[1], owner=(sys.argv[2], Stamp(1, 1, 'b'))); print('mine')\n"
        "except JournalForeign: print('foreign')"
    )
    both = [start(code, path, name) for name in ("one", "two")]
    outputs = []
    threads = [threading.Thread(target=lambda each=each: outputs.append(each.communicate()[0])) for each in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == [b"foreign\n", b"mine\n"]
    with Journal.open(path, read_only=True) as journal:
        assert journal.head().seq == 1
