# SPDX-License-Identifier: Apache-2.0
"""Any sequence of appends gives what a dict and a list would."""

import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from journal import Journal, NewRecord, RequirementFailed, Stamp, VersionConflict

STREAMS = st.sampled_from(["a", "a!", "b", "日本"])
KEYS = st.sampled_from([b"k", b"k/1", b"k/2", b"l"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
RECORD = st.builds(NewRecord, st.sampled_from(["event", "omen"]), TEXT, st.dictionaries(TEXT, JSON, max_size=3))
APPEND = st.tuples(
    STREAMS,
    st.lists(RECORD, min_size=1, max_size=4),
    st.integers(-1, 1),  # how far the expected rev is off
    st.dictionaries(KEYS, st.none() | st.binary(max_size=20), max_size=3),
    st.dictionaries(KEYS, st.none() | st.sampled_from([b"", b"0"]), max_size=1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(APPEND, max_size=8))
def test_a_journal_is_a_list_and_a_dict(program):
    log, projections = [], {}
    with tempfile.TemporaryDirectory() as path, Journal.open(path, sync=False, map_bytes=1 << 18) as journal:
        for stream, records, off, update, requires in program:
            rev = sum(1 for entry in log if entry[0] == stream)
            expected_rev = max(0, rev + off)
            met = all(projections.get(key) == value for key, value in requires.items())
            try:
                stored = journal.append(
                    stream,
                    records,
                    stamp=Stamp(1, 2, "boot"),
                    expected_rev=expected_rev,
                    projections=update,
                    requires=requires,
                )
            except VersionConflict:
                assert expected_rev != rev
            except RequirementFailed:
                assert not met
            else:
                assert (expected_rev, met) == (rev, True)
                assert [record.seq for record in stored] == [len(log) + place for place, _ in enumerate(records, 1)]
                log += [(stream, rev + place, new.kind, new.type, new.body) for place, new in enumerate(records, 1)]
                projections |= update
                projections = {key: value for key, value in projections.items() if value is not None}
        told = [(r.stream, r.rev, r.kind, r.type, r.data) for r in journal.read()]
        assert told == log
        assert dict(journal.projections()) == projections
        assert [r.seq for r in journal.read(reverse=True)] == list(range(len(log), 0, -1))
        for info in journal.streams():
            own = [entry for entry in log if entry[0] == info.stream]
            assert [(r.stream, r.rev, r.kind, r.type, r.data) for r in journal.read_stream(info.stream)] == own
            assert info.rev == len(own)
        assert {info.stream for info in journal.streams()} == {entry[0] for entry in log}
        assert list(journal.verify()) == []
