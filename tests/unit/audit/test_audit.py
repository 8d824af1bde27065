# SPDX-License-Identifier: Apache-2.0
"""Audit events: who, what, what became of it; their schema is kept and only grows."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from journal import NewRecord
from kata_fsm.audit.events import events
from kata_fsm.audit.schema import ACTIONS, FIELDS, AuditEvent, json_schema
from kata_fsm.audit.sentences import sentence
from kata_fsm.cli.main import main
from kata_fsm.machines.vocab import (
    AttachShim,
    Cause,
    CreateSandbox,
    Exec,
    Kill,
    Pause,
    ProcessExited,
    Resume,
    ShareDied,
    Update,
)
from kata_fsm.replay.reading import open_journal
from tests.support.golden import agrees
from tests.support.pods import SHIM, WALL_NS, Driven, Host


def busy(pod: Driven) -> Driven:
    """A life in which nearly every request is made, and some fail."""
    pod.create().start()
    me = pod.name
    pod.give(Exec(me, f"{me}/e1", {"args": ["sh", "-c", "***"]}), after_ms=10)
    pod.give(AttachShim(f"{me}/e1", {"pid": 9002}), actor=SHIM)
    pod.done("process.exec", f"{me}/e1")
    pod.give(ProcessExited(f"{me}/e1", 0, Cause("exited", "exit code 0")), after_ms=50)
    pod.give(Exec(me, f"{me}/e2", {"args": ["nosuch\x1b[2J"]}))
    pod.give(AttachShim(f"{me}/e2", {"pid": 9003}), actor=SHIM)
    pod.failed("process.exec", "agent", "no such file", f"{me}/e2")
    pod.give(Pause(me))
    pod.done("container.pause", me)
    pod.give(Resume(me))
    pod.failed("container.resume", "agent", "the freezer is stuck", me)
    pod.give(Update(me, {"memory": {"limit": 1 << 26}}))
    pod.append([NewRecord("outcome", "container.update", {"subject": me, "ok": False, "message": "too small"})])
    pod.give(Kill(me, 9))
    pod.append([NewRecord("outcome", "process.signal", {"subject": f"{me}/init", "signal": 9, "ok": True})])
    return pod.vm_killed().delete()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    host = Host(tmp_path / "journal")
    busy(host.sandbox())
    host.close()
    return host.path


def exported(path: Path, *argv: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    assert main(["audit", "export", "--format", "jsonl", "--journal", str(path), *argv]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_schema_is_as_kept() -> None:
    agrees("audit/schema.json", json.dumps(json_schema(), indent=2) + "\n")


def test_the_export_is_as_kept(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = exported(path, capsys=capsys)
    agrees("audit/busy.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert all(tuple(row) == FIELDS for row in rows)
    assert {row["action"] for row in rows} <= set(ACTIONS)


def test_the_sentences_are_as_kept(path: Path) -> None:
    with open_journal(str(path)) as journal:
        found = events(list(journal.read()))
    told = [sentence(event) for event in found]
    agrees("audit/busy.txt", "\n".join(told) + "\n")
    assert all(line.isprintable() for line in told)


def test_every_event_names_its_record(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = exported(path, capsys=capsys)
    with open_journal(str(path)) as journal:
        for row in rows:
            record = journal.get(int(str(row["seq"])))
            assert record is not None
            assert (row["digest"], row["prev"], row["stream"]) == (record.digest, record.prev, record.stream)


def one(rows: list[AuditEvent], action: str, process: str | None = None) -> AuditEvent:
    (found,) = [row for row in rows if row.action == action and (process is None or row.process == process)]
    return found


def test_what_became_of_requests(path: Path) -> None:
    with open_journal(str(path)) as journal:
        rows = events(list(journal.read()))
    assert (one(rows, "exec", "e1").outcome, one(rows, "exec", "e1").exit_code) == ("allowed", 0)
    assert (one(rows, "exec", "e2").outcome, one(rows, "exec", "e2").cause) == (
        "failed",
        {"kind": "exec_failed", "message": "no such file"},
    )
    assert one(rows, "pause").outcome == "allowed"
    assert one(rows, "resume").outcome == "failed"
    assert one(rows, "update").cause == {"kind": "unknown", "message": "too small"}
    assert one(rows, "kill").outcome == "allowed"
    assert one(rows, "delete").outcome == "allowed"
    assert one(rows, "sandbox_ended").outcome == "failed"


def test_a_request_without_an_end_is_pending_and_never_allowed(tmp_path: Path) -> None:
    host = Host(tmp_path / "journal")
    pod = host.sandbox()
    pod.give(CreateSandbox("web", pod.uid, {}, {"args": ["true"]}))
    host.close()
    with open_journal(str(host.path)) as journal:
        assert one(events(list(journal.read())), "create").outcome == "pending"


def test_a_failed_creation_names_its_cause(tmp_path: Path) -> None:
    host = Host(tmp_path / "journal")
    pod = host.sandbox()
    pod.give(CreateSandbox("web", pod.uid, {}, {"args": ["true"]}))
    pod.failed("hypervisor.launch", "spawn", "no space left on device")
    pod.work_off()
    host.close()
    with open_journal(str(host.path)) as journal:
        created = one(events(list(journal.read())), "create")
    assert (created.outcome, created.cause) == (
        "failed",
        {"kind": "create_failed", "message": "no space left on device"},
    )


def test_selection(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = exported(path, capsys=capsys)
    assert exported(path, "--until", f"@{WALL_NS // 10**9}", capsys=capsys) == []
    later = exported(path, "--since", f"@{WALL_NS // 10**9 + 100}", capsys=capsys)
    assert 0 < len(later) < len(everything)
    assert later == everything[-len(later) :]
    assert [row["action"] for row in exported(path, "--action", "pause,resume", capsys=capsys)] == ["pause", "resume"]
    assert {row["outcome"] for row in exported(path, "--outcome", "failed", capsys=capsys)} == {"failed"}
    assert exported(path, "--subject", "web", capsys=capsys) == everything
    assert main(["audit", "export", "--action", "fly", "--journal", str(path)]) == 2


def test_events_of_several_sandboxes_are_in_the_journals_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(tmp_path / "journal")
    first, second = host.sandbox("one", "aaaa00000001").create(), host.sandbox("two", "bbbb00000002").create()
    first.start()
    second.start()
    first.exits(0)
    host.close()
    seqs = [row["seq"] for row in exported(host.path, capsys=capsys)]
    assert seqs == sorted(seqs, key=lambda seq: int(str(seq)))


def test_export_into_a_file(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "events.jsonl"
    assert main(["audit", "export", "-O", str(target), "--journal", str(path)]) == 0
    rows = exported(path, capsys=capsys)
    assert [json.loads(line) for line in target.read_text().splitlines()] == rows
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [item.name for item in tmp_path.iterdir() if "events" in item.name] == ["events.jsonl"]


def test_sentences_by_default_are_of_the_last_day(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--since", "@0", "--journal", str(path)]) == 0
    assert "created container web of sandbox web: allowed" in capsys.readouterr().out
    assert main(["audit", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "kata-fsm.audit/1"


def test_an_id_means_every_life_it_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = Host(tmp_path / "journal")
    for uid in ("aaaa00000001", "bbbb00000002"):
        host.sandbox("web", uid).create().start().exits(0).delete()
    host.close()
    assert {row["uid"] for row in exported(host.path, "--subject", "web", capsys=capsys)} == {
        "aaaa00000001",
        "bbbb00000002",
    }
    assert {row["uid"] for row in exported(host.path, "--subject", "aaaa", capsys=capsys)} == {"aaaa00000001"}


def test_what_ends_in_a_tear_down_is_no_news(tmp_path: Path) -> None:
    host = Host(tmp_path / "journal")
    pod = host.sandbox().create().start().exits(0)
    pod.give(ShareDied(Cause("share_died", "virtiofsd exited with code 0")))
    host.close()
    with open_journal(str(host.path)) as journal:
        records = list(journal.read())
    assert records[-1].type == "share_died"
    assert "share_died" not in [event.action for event in events(records)]
