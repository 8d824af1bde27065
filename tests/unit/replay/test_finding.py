# SPDX-License-Identifier: Apache-2.0
"""Which sandbox, which position, which instant is meant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from journal import Journal
from kata_fsm.errors import NotFoundError, UsageError
from kata_fsm.machines.vocab import CreateContainer
from kata_fsm.replay.escape import harmless
from kata_fsm.replay.moments import date_time, duration, iso_utc, parse_instant, short_delta
from kata_fsm.replay.position import locate
from kata_fsm.replay.reading import open_journal
from kata_fsm.replay.story import Story, tell
from kata_fsm.replay.subject import resolve
from tests.support.pods import WALL_NS, Host

DAY_NS = 86_400_000_000_000


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    host = Host(tmp_path / "j")
    host.sandbox("web", "aaaa00000001").create().start().exits(0).delete()
    host.sandbox("db", "bbbb00000002").create().start().vm_killed().delete()
    host.sandbox("web", "cccc00000003").create()
    pod = host.sandbox("webserver", "dddd00000004").create()
    pod.give(CreateContainer("sidecar", {}))
    host.close()
    with open_journal(str(host.path)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("subject", "stream"),
    [
        ("latest", "webserver@dddd00000004"),
        ("latest:failed", "db@bbbb00000002"),
        ("web", "web@cccc00000003"),  # an exact id wins over a beginning, its latest life over earlier ones
        ("web@a", "web@aaaa00000001"),
        ("aaaa", "web@aaaa00000001"),
        ("webs", "webserver@dddd00000004"),
        ("db@bbbb00000002", "db@bbbb00000002"),
        ("sidecar", "webserver@dddd00000004"),
    ],
)
def test_subjects(journal: Journal, subject: str, stream: str) -> None:
    assert resolve(journal, subject).stream == stream


def test_earlier_lives_of_an_id_are_known(journal: Journal) -> None:
    assert resolve(journal, "web").earlier == ("web@aaaa00000001",)


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("we", "`we` is not unique: 3 sandboxes begin so"),
        ("x\x1b", r"no sandbox or container `x\\e`"),
        ("", "no sandbox"),
    ],
)
def test_what_is_not_found_is_named(journal: Journal, subject: str, message: str) -> None:
    with pytest.raises(NotFoundError, match=message) as caught:
        resolve(journal, subject)
    assert caught.value.hint


def test_an_empty_journal_says_so(tmp_path: Path) -> None:
    Host(tmp_path / "j").close()
    with open_journal(str(tmp_path / "j")) as journal, pytest.raises(NotFoundError, match="has no sandbox yet"):
        resolve(journal)


def test_no_journal_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError), open_journal(str(tmp_path / "none")):
        pass


@pytest.fixture
def story(journal: Journal) -> Story:
    stream = "db@bbbb00000002"
    return tell(list(journal.read_stream(stream)), stream)


def test_positions(story: Story) -> None:
    now = story.last.wall_ns
    assert locate(story, str(story.first.seq + 3), now).rev == 4
    assert locate(story, "r2", now).rev == 2
    assert locate(story, "head", now) is story.last
    assert locate(story, "head~2", now) is story.rows[-3]
    assert locate(story, "state:running", now).dest == "running"
    assert locate(story, "state:failed", now).machine == "sandbox"
    assert locate(story, "cause:vm_killed", now).what == "vm_died"
    assert locate(story, f"@{story.first.wall_ns // 1_000_000_000 + 1}", now).wall_ns >= story.first.wall_ns


@pytest.mark.parametrize(
    "at", ["999999", "r0", "head~99999", "state:paused", "cause:guest_oom", "state:running#9", "@1"]
)
def test_positions_that_are_nowhere(story: Story, at: str) -> None:
    with pytest.raises(NotFoundError, match="is nowhere in the story"):
        locate(story, at, story.last.wall_ns)


@pytest.mark.parametrize("at", ["", "soon", "r", "head~", "state:", "25:00", "2026-13-01"])
def test_what_is_no_position(story: Story, at: str) -> None:
    with pytest.raises(UsageError, match="is no position") as caught:
        locate(story, at, story.last.wall_ns)
    assert caught.value.exit_code == 2


def test_instants() -> None:
    assert parse_instant("2026-11-23T11:02:07Z", 0) == WALL_NS
    assert parse_instant("2026-11-23T12:02:07+01:00", 0) == WALL_NS
    assert parse_instant("-10min", WALL_NS) == WALL_NS - 600_000_000_000
    assert parse_instant("2h ago", WALL_NS) == WALL_NS - 7_200_000_000_000
    assert parse_instant("@1795431727", 0) == WALL_NS
    assert parse_instant("@1795431727.25", 0) == WALL_NS + 250_000_000
    assert parse_instant("now", WALL_NS) // 1_000_000_000 == WALL_NS // 1_000_000_000
    assert DAY_NS * 0.9 < parse_instant("today", WALL_NS) - parse_instant("yesterday", WALL_NS) < DAY_NS * 1.1
    for wrong in ("", "10min", "tomorrow-ish", "@x", "12:61"):
        with pytest.raises(UsageError, match="is no time"):
            parse_instant(wrong, WALL_NS)


@pytest.mark.parametrize(
    ("ms", "long", "short"),
    [
        (0, "0 ms", "+0"),
        (0.42, "0.4 ms", "+0"),
        (37, "37 ms", "+37"),
        (999.7, "1.00 s", "+1000"),
        (1900, "1.90 s", "+1900"),
        (59_400, "59.4 s", "+59.4s"),
        (192_000, "3 min 12 s", "+192s"),
        (7_500_000, "2 h 5 min", "+125min"),
        (3 * DAY_NS / 1e6, "3 d 0 h", "+72h"),
        (-250, "-250 ms", "-250"),
    ],
)
def test_durations(ms: float, long: str, short: str) -> None:
    assert (duration(ms), short_delta(ms)) == (long, short)


def test_times_of_day() -> None:
    assert iso_utc(WALL_NS + 45_000_000) == "2026-11-23T11:02:07.045Z"
    assert date_time(WALL_NS, utc=True) == "2026-11-23 11:02:07Z"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain words, ünïcode → ✔", "plain words, ünïcode → ✔"),
        ("\x1b[31m", "\\e[31m"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_harmless(raw: str, shown: str) -> None:
    assert harmless(raw) == shown
    assert harmless(raw).isprintable()
