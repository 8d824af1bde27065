# SPDX-License-Identifier: Apache-2.0
"""`replay` and `journal` as commands: what they print, and the exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from journal import NewRecord
from kata_fsm.cli.main import main
from tests.support.pods import Host

Capture = pytest.CaptureFixture[str]  # of descriptors: errors are written without Python's buffers


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of three sandboxes: one exited with 3, one failed, one is alive."""
    host = Host(tmp_path / "journal")
    host.sandbox("web", "aaaa00000001").create().start().exits(3).delete()
    host.sandbox("db", "bbbb00000002").create().start().vm_killed().delete()
    host.sandbox("live", "cccc00000003").create().start()
    host.close()
    return host.path


def called(capfd: Capture, *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    out, err = capfd.readouterr()
    return code, out, err


def spoil(path: Path, old: bytes, new: bytes) -> None:
    """Change stored bytes behind the journal's back, in every page that has them."""
    data = (path / "data.mdb").read_bytes()
    assert old in data
    assert len(old) == len(new)
    (path / "data.mdb").write_bytes(data.replace(old, new))


def test_the_story_of_a_deleted_sandbox(path: Path, capfd: Capture) -> None:
    code, out, err = called(capfd, "replay", "web", "--journal", str(path), "--utc")
    assert (code, err) == (0, "")
    assert out.startswith("sandbox web (aaaa00000001)   EXITED, deleted   cause: workload_exited: exit code 3")
    assert "nothing open" in out


def test_the_default_is_the_latest_and_the_hosts_journal(
    path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KATA_FSM_JOURNAL", str(path))
    code, out, _ = called(capfd, "replay")
    assert code == 0
    assert out.startswith("sandbox live (cccc00000003)   RUNNING")
    assert " note  " in out


def test_a_copy_of_the_data_file_alone_is_enough(path: Path, tmp_path: Path, capfd: Capture) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(path / "data.mdb", copy)
    for argv in (["replay", "live"], ["journal", "verify"], ["audit", "export"], ["replay", "check", "--all"]):
        code, out, err = called(capfd, *argv, "--journal", str(copy))
        assert (code, err) == (0, ""), argv
        assert out
    assert sorted(item.name for item in copy.iterdir()) == ["data.mdb"]


def test_json(path: Path, capfd: Capture) -> None:
    code, out, _ = called(capfd, "replay", "db", "--journal", str(path), "-o", "json")
    story = json.loads(out)
    assert code == 0
    assert story["schema"] == "kata-fsm.replay/1"
    assert (story["verdict"], story["deleted"], story["cause"]["kind"]) == ("failed", True, "vm_killed")
    assert story["why"][-1]["text"].startswith("vm_died")
    assert len(story["records"]) == story["seq"]["count"]
    launch = next(row for row in story["records"] if row["lane"] == "outcome" and row["what"] == "hypervisor.launch")
    assert launch["ms"] == 121.0
    assert launch["detail"]["argv"][0] == "qemu-system-x86_64"


def test_jsonl(path: Path, capfd: Capture) -> None:
    code, out, _ = called(capfd, "replay", "db", "--journal", str(path), "-o", "jsonl", "-n", "3")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(rows) == 3
    assert {row["schema"] for row in rows} == {"kata-fsm.replay.record/1"}
    assert rows[-1]["dest"] == "deleted"


def test_list(path: Path, capfd: Capture) -> None:
    _, out, _ = called(capfd, "replay", "list", "--journal", str(path), "--utc")
    table = [line.split() for line in out.splitlines()]
    assert [row[0] for row in table] == ["SANDBOX", "web", "db", "live"]
    code, out, _ = called(capfd, "replay", "list", "--journal", str(path), "--failed", "-o", "jsonl")
    assert (code, json.loads(out)["sandbox"]) == (0, "db")


def test_state_at_a_position(path: Path, capfd: Capture) -> None:
    code, out, _ = called(
        capfd, "replay", "state", "web", "--at", "state:running", "-o", "json", "--journal", str(path)
    )
    state = json.loads(out)
    assert code == 0
    assert state["status"] == {"web": "running"}
    assert state["states"]["vm"] == "running"
    assert state["open"] == []


def test_check_agrees_and_disagrees(path: Path, tmp_path: Path, capfd: Capture) -> None:
    assert called(capfd, "replay", "check", "--all", "--journal", str(path))[0] == 0
    host = Host(tmp_path / "forged")
    pod = host.sandbox().create()
    pod.append(
        [NewRecord("event", "vm.died", {"machine": "vm", "trigger": "died", "source": "running", "dest": "gone"})]
    )
    host.close()
    code, out, _ = called(capfd, "replay", "check", "--journal", str(host.path))
    assert code == 4
    assert "does not match this version's vm table" in out
    assert "running --died--> gone" in out
    assert "running --died--> exited" in out
    code, out, _ = called(capfd, "replay", "--journal", str(host.path))
    assert code == 4
    assert "`kata-fsm replay check` names them" in out


def test_a_damaged_record_stops_the_story_and_says_so(path: Path, capfd: Capture) -> None:
    spoil(path, b"qemu ended by signal 9", b"qemu ended by signal 6")
    code, out, _ = called(capfd, "replay", "db", "--journal", str(path))
    assert code == 5
    assert "the journal is damaged, this story stops before its end" in out
    assert "vm_died" not in out
    assert called(capfd, "replay", "web", "--journal", str(path))[0] == 0
    code, out, _ = called(capfd, "journal", "verify", "--journal", str(path))
    assert code == 5
    assert out.startswith("modified")
    code, out, _ = called(capfd, "journal", "verify", "--json", "--journal", str(path))
    assert (code, json.loads(out)["ok"]) == (5, False)
    code, out, err = called(capfd, "audit", "export", "--journal", str(path))
    assert code == 5
    assert "damaged: db@bbbb00000002" in err
    assert '"sandbox":"live"' in out


def test_a_broken_chain_has_an_exit_code_of_its_own() -> None:
    from journal import Finding
    from kata_fsm.cli.journal.judging import code as verify_code

    assert verify_code([]) == 0
    for kind in ("missing", "reordered", "chain", "head"):
        assert verify_code([Finding(kind, 1, "")]) == 6
    for kind in ("modified", "codec", "index"):
        assert verify_code([Finding("chain", 2, ""), Finding(kind, 1, "")]) == 5


def test_what_is_not_there(path: Path, tmp_path: Path, capfd: Capture) -> None:
    code, out, err = called(capfd, "replay", "nobody", "--journal", str(path))
    assert (code, out) == (1, "")
    assert "no sandbox or container `nobody`" in err
    assert called(capfd, "replay", "--journal", str(tmp_path / "none"))[0] == 1
    assert called(capfd, "journal", "get", "9999", "--journal", str(path))[0] == 1


@pytest.mark.parametrize(
    "argv", [["replay", "--what"], ["replay", "-o", "xml"], ["journal", "get"], ["journal", "tail", "-n", "-1"]]
)
def test_wrong_usage(argv: list[str], capfd: Capture) -> None:
    code, out, err = called(capfd, *argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_an_id_that_is_a_word_of_ours_can_be_shown(tmp_path: Path, capfd: Capture) -> None:
    host = Host(tmp_path / "journal")
    host.sandbox("list").create()
    host.close()
    code, out, _ = called(capfd, "replay", "show", "list", "--journal", str(host.path))
    assert code == 0
    assert out.startswith("sandbox list (")


def test_stat_names_the_directory(path: Path, capfd: Capture) -> None:
    code, out, _ = called(capfd, "journal", "stat", "--json", "--journal", str(path))
    stat = json.loads(out)
    assert code == 0
    assert (stat["path"], stat["streams"]) == (str(path), 3)
    assert stat["records"] == stat["head"]["seq"]
    assert called(capfd, "journal", "--journal", str(path))[1].startswith(f"path        {path}\n")


def test_tail_and_get(path: Path, capfd: Capture) -> None:
    code, out, _ = called(capfd, "journal", "tail", "-n", "2", "-o", "json", "--journal", str(path))
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(rows) == 2
    assert rows[1]["prev"] == rows[0]["digest"]
    code, out, _ = called(capfd, "journal", "get", str(rows[0]["seq"]), "--journal", str(path))
    assert (code, json.loads(out)) == (0, rows[0])


def test_tail_follows(path: Path) -> None:
    argv = [sys.executable, "-m", "kata_fsm.cli.verbs.journal"]
    code = "import sys; from kata_fsm.cli.main import console_main; sys.argv[0] = 'kata-fsm'; console_main()"
    argv = [sys.executable, "-c", code, "journal", "tail", "-f", "-n", "1", "-o", "json", "--journal", str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert json.loads(child.stdout.readline())["stream"].startswith("live@")
            host = Host(path)
            host.sandbox("later", "dddd00000004").append([NewRecord("note", "hello", {})])
            host.close()
            assert json.loads(child.stdout.readline())["type"] == "hello"
        finally:
            child.kill()


def test_nothing_that_can_act_is_imported(path: Path) -> None:
    """Replay has no way to an effect, and does not pay for what it does not need."""
    code = (
        "import sys; from kata_fsm.cli.main import main\n"
        f"assert main(['replay', 'web', '--journal', {str(path)!r}]) == 0\n"
        f"assert main(['audit', 'export', '--journal', {str(path)!r}]) == 0\n"
        "heavy = {'trio', 'qemu', 'pyroute2', 'transitions', 'google', 'asyncio', 'kata_fsm.effects', 'kata_fsm.runtime'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.strip() == "[]"
