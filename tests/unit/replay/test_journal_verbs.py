# SPDX-License-Identifier: Apache-2.0
"""`journal` and `audit head|verify` as commands, on journals that the machines wrote."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from journal import Journal, Stamp, layout
from kata_fsm.cli.main import main
from tests.support.pods import Host

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of three sandboxes: one exited with 3 and was deleted, one failed and was deleted, one is alive."""
    host = Host(tmp_path / "journal")
    host.sandbox("web", "aaaa00000001").create().start().exits(3).delete()
    host.sandbox("db", "bbbb00000002").create().start().vm_killed().delete()
    host.sandbox("live", "cccc00000003").create().start()
    host.close()
    return host.path


class Called:
    """Calls the command and takes what it printed."""

    def __init__(self, capfd: Capture) -> None:
        self._capfd = capfd

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        code = main(list(argv))
        out, err = self._capfd.readouterr()
        return code, out, err

    def lines(self, *argv: str) -> list[str]:
        code, out, err = self(*argv)
        assert (code, err) == (0, ""), argv
        return out.splitlines()

    def json(self, *argv: str) -> dict[str, object]:
        return dict(json.loads("\n".join(self.lines(*argv))))


@pytest.fixture
def call(capfd: Capture) -> Called:
    return Called(capfd)


def on(path: Path, *argv: str) -> list[str]:
    return [*argv, "--journal", str(path)]


def test_stat_tells_of_everything(path: Path, call: Called) -> None:
    fields = call.json(*on(path, "journal", "--json"))
    assert fields["schema"] == "kata-fsm.journal.stat/1"
    assert (fields["path"], fields["streams"], fields["pruned"], fields["checkpoint"]) == (str(path), 3, 0, None)
    call.lines(*on(path, "journal", "checkpoint"))
    text = call.lines(*on(path, "journal", "stat"))
    assert any(line.startswith("checkpoint  seq ") and line.endswith("not signed") for line in text)


def test_list_and_tail_take_what_journalctl_takes(path: Path, call: Called) -> None:
    everything = call.lines(*on(path, "journal", "list"))
    with Journal.open(path, read_only=True) as journal:
        records = list(journal.read())
    assert len(everything) == len(records)
    assert call.lines(*on(path, "journal", "tail", "-n", "3")) == everything[-3:]
    assert call.lines(*on(path, "journal", "tail", "-n", "3", "-r")) == everything[-3:][::-1]
    assert len(call.lines(*on(path, "journal", "tail"))) == 20
    commands = call.lines(*on(path, "journal", "list", "kind=command", "stream=web@aaaa00000001"))
    assert commands == call.lines(*on(path, "journal", "list", "kind=command", "--subject", "web"))
    assert 1 < len(commands) < 10
    either = call.lines(*on(path, "journal", "list", "kind=command", "kind=note", "-n", "2", "--subject", "db"))
    assert len(either) == 2
    rows = [json.loads(line) for line in call.lines(*on(path, "journal", "list", "-o", "json", "type=start"))]
    assert {row["type"] for row in rows} == {"start"}
    middle = rows[1]["wall_ns"]
    since = call.lines(*on(path, "journal", "list", "-S", f"@{middle // 10**9}.{middle % 10**9:09}"))
    assert len(since) == sum(record.wall_ns >= middle // 1000 * 1000 for record in records)
    until = call.lines(*on(path, "journal", "list", "-U", f"@{middle // 10**9}.{middle % 10**9:09}"))
    assert len(since) + len(until) == len(everything)
    verbose = call.lines(*on(path, "journal", "tail", "-n", "1", "-o", "verbose"))
    assert verbose[0] == everything[-1]
    assert any(line.strip().startswith("digest: sha256:") for line in verbose)


def test_boots_are_named_as_journalctl_does(tmp_path: Path, call: Called) -> None:
    host = Host(tmp_path / "journal")
    host.sandbox("one", "aaaa00000001").create()
    host.reboot()
    host.sandbox("two", "aaaa00000002").create()
    host.close()
    with Journal.open(host.path, read_only=True) as journal:
        boots = list(dict.fromkeys(record.boot_id for record in journal.read()))
    counts = {boot: len(call.lines(*on(host.path, "journal", "list", f"boot={boot}"))) for boot in boots}
    assert len(counts) == 2
    assert len(call.lines(*on(host.path, "journal", "list", "-b", "1"))) == counts[boots[0]]
    assert len(call.lines(*on(host.path, "journal", "list", "-b", "-1"))) == counts[boots[1]]
    assert len(call.lines(*on(host.path, "journal", "list", "-b", boots[0]))) == counts[boots[0]]
    code, out, err = call(*on(host.path, "journal", "list", "-b"))
    assert (code, out, err) == (1, "", ""), "nothing was recorded in this boot"
    code, _, err = call(*on(host.path, "journal", "list", "-b", "-7"))
    assert (code, "there is no boot `-7`" in err) == (1, True)


def test_wrong_words_are_refused(path: Path, call: Called) -> None:
    for argv, said in [
        (["list", "colour=red"], "is no match"),
        (["list", "kind"], "is no match"),
        (["tail", "-f", "-r"], "exclude each other"),
        (["prune"], "give --keep, --max-size or both"),
        (["prune", "--keep", "30"], "is no span of time"),
        (["prune", "--max-size", "much"], "is no size"),
        (["export"], "--output"),
        (["get", "x"], "SEQ"),
    ]:
        code, out, err = call(*on(path, "journal", *argv))
        assert (code, out) == (2, ""), argv
        assert said in err
        assert err.count("\n") == 1


def test_get_prints_the_bytes_that_are_hashed(path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with Journal.open(path, read_only=True) as journal:
        text, digest = journal.get_text(7), journal.get(7)
    assert main(on(path, "journal", "get", "7", "--raw")) == 0
    out, _ = capfdbinary.readouterr()
    assert out == text
    assert digest is not None
    told = subprocess.run(["sha256sum"], input=out, capture_output=True, check=True).stdout
    assert told.split()[0].decode() == digest.digest


def test_prune_removes_what_is_over_and_verify_still_holds(path: Path, call: Called) -> None:
    dry = call.lines(*on(path, "journal", "prune", "--keep", "1s", "--dry-run"))
    assert [line.split()[2] for line in dry[:-1]] == ["web@aaaa00000001:", "db@bbbb00000002:"]
    assert call.json(*on(path, "journal", "--json"))["streams"] == 3
    done = call.json(*on(path, "journal", "prune", "--keep", "1s", "--json"))
    assert [each["stream"] for each in done["removed"]] == ["web@aaaa00000001", "db@bbbb00000002"]  # type: ignore[attr-defined, union-attr]
    stat = call.json(*on(path, "journal", "--json"))
    assert stat["streams"] == 1
    assert stat["pruned"]
    told = call.lines(*on(path, "journal", "verify"))
    assert told[0].startswith("ok: ")
    assert told[1].startswith("pruned: ")
    assert "accounted for by tombstones" in told[1]
    code, _, err = call(*on(path, "journal", "get", "1"))
    assert (code, "record `1` was pruned" in err) == (7, True)
    assert call(*on(path, "replay", "live"))[0] == 0
    assert call(*on(path, "replay", "web"))[0] == 1
    with Journal.open(path, read_only=True) as journal:
        assert dict(journal.projections(b"s/")).keys() == {b"s/live@cccc00000003"}
        [tombstone] = list(journal.read_stream(layout.SYSTEM_STREAM))
        assert tombstone.data["reason"]["by"]["uid"] == os.geteuid()


def test_prune_by_size_takes_the_oldest_and_stops_in_time(tmp_path: Path, call: Called) -> None:
    host = Host(tmp_path / "journal")
    for number in range(6):
        host.sandbox(f"s{number}", f"{number:012x}").create().start().exits(0).delete()
    host.close()
    live = call.json(*on(host.path, "journal", "--json"))["live_bytes"]
    assert isinstance(live, int)
    assert call.lines(*on(host.path, "journal", "prune", "--max-size", "1G"))[-1].startswith("removed 0 sandboxes")
    call.lines(*on(host.path, "journal", "prune", "--max-size", f"{live * 2 // 3}"))
    after = call.json(*on(host.path, "journal", "--json"))
    assert isinstance(after["live_bytes"], int)
    assert after["live_bytes"] <= live * 2 // 3
    left = [line.split()[0] for line in call.lines(*on(host.path, "replay", "list"))[1:]]
    assert 0 < len(left) < 6
    assert left == [f"s{number}" for number in range(6)][6 - len(left) :], "the oldest went"
    told = call.lines(*on(host.path, "journal", "prune", "--max-size", "1"))
    assert told[-1].startswith("still more than 1 B")
    assert call.lines(*on(host.path, "journal", "verify"))[0].startswith("ok: ")


def test_a_sandbox_travels(path: Path, tmp_path: Path, call: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = str(tmp_path / "web.kfsm")
    here = call.lines(*on(path, "replay", "web", "--utc"))
    assert "1 sandboxes (web@aaaa00000001)" in call.lines(*on(path, "journal", "export", "web", "-O", bundle))[0]
    assert call.lines("replay", bundle, "--utc") == here
    assert call.lines(*on(Path(bundle), "replay", "web", "--utc")) == here
    assert call.lines("replay", "check", bundle)[0].endswith("agree with this build")
    assert call.lines(*on(Path(bundle), "journal", "verify"))[0].startswith("ok: ")
    other = Host(tmp_path / "other")
    other.sandbox("web", "ffff00000001").create()
    other.close()
    monkeypatch.setenv("KATA_FSM_JOURNAL", str(other.path))
    assert "1 sandboxes" in call.lines("journal", "import", bundle, "--as", "case-7")[0]
    assert call.json("journal", "--json")["imports"] == ["case-7"]
    assert call.lines("replay", "case-7", "--utc") == here
    assert "ffff00000001" in call.lines("replay", "web")[0], "what is recorded here goes first"
    code, _, err = call("journal", "import", bundle, "--as", "case-7")
    assert (code, "already" in err) == (3, True)
    call.lines("journal", "forget", "case-7")
    assert call("replay", "case-7")[0] == 1
    call.lines("journal", "export", "--all", "-O", bundle)
    assert [line.split()[0] for line in call.lines("replay", "list", "--journal", bundle)] == ["SANDBOX", "web"]


def test_a_bundle_that_is_none_is_refused(path: Path, tmp_path: Path, call: Called) -> None:
    bad = tmp_path / "bad.kfsm"
    bad.write_text("no bundle")
    for argv in (["replay", str(bad)], on(bad, "journal", "verify"), on(path, "journal", "import", str(bad))):
        code, out, err = call(*argv)
        assert (code, out) == (5, "")
        assert err.count("\n") == 1
    code, _, err = call("replay", str(tmp_path / "none.kfsm"))
    assert (code, "No such file" in err) == (1, True)


def test_what_a_damaged_journal_still_holds_is_salvaged(path: Path, tmp_path: Path, call: Called) -> None:
    whole = call.lines(*on(path, "replay", "db", "--utc"))
    bundle = str(tmp_path / "rescued.kfsm")
    assert "NOT" not in call.lines("journal", "salvage", str(path), "-O", bundle)[-1]
    assert call.lines("replay", "db", "--journal", bundle, "--utc") == whole
    data = path / "data.mdb"
    content = bytearray(data.read_bytes())
    content[0:200] = bytes(200)  # a meta page
    content[8192:8500] = bytes(308)
    data.write_bytes(content)
    before = data.read_bytes()
    code, out, _ = call("journal", "salvage", str(path), "-O", bundle)
    assert code == 5
    assert "NOT complete" in out
    assert data.read_bytes() == before
    assert call("replay", "list", "--journal", bundle)[0] == 0
    for argv in (["journal", "verify"], ["audit", "verify"]):
        code, out, err = call(*on(path, *argv))
        assert code == 5
        assert "structure" in out
    for argv in (["replay", "db"], ["journal", "tail"], ["journal"]):
        code, _, err = call(*on(path, *argv))
        assert (code, err.count("\n")) == (5, 1), argv


def test_reindex_mends_projections(path: Path, call: Called) -> None:
    with Journal.open(path) as journal, journal._env._env.begin(write=True) as txn:
        txn.put(b"s/web@aaaa00000001", b"{}", db=journal._env.tables.projections)
        txn.put(b"c/x", b"{}", db=journal._env.tables.projections)
    code, out, _ = call(*on(path, "journal", "verify"))
    assert code == 5
    assert "projection `s/web@aaaa00000001`" in out
    assert call(*on(path, "journal", "verify", "--quick"))[0] == 0
    assert call.lines(*on(path, "journal", "reindex")) == [
        "2 projections were not what the records fold to, and are now"
    ]
    call.lines(*on(path, "journal", "verify"))


def test_a_head_kept_elsewhere_proves_growth(path: Path, tmp_path: Path, call: Called) -> None:
    head = str(tmp_path / "head.json")
    call.lines(*on(path, "audit", "head", "-O", head))
    assert "0 records were only added" in call.lines(*on(path, "audit", "verify", "--since-head", head))[0]
    call.lines(*on(path, "journal", "checkpoint"))
    assert "1 records were only added" in call.lines(*on(path, "audit", "verify", "--since-head", head))[0]
    other = Host(tmp_path / "other")
    other.sandbox("web", "ffff00000001").create()
    other.close()
    code, _, err = call(*on(other.path, "audit", "verify", "--since-head", head))
    assert (code, "is the head of journal" in err) == (6, True)
    kept = json.loads(Path(head).read_text())
    for changes, expected in [({"digest": "0" * 64}, 6), ({"seq": 9999}, 6), ({"schema": "x"}, 5), ({"seq": "x"}, 5)]:
        Path(head).write_text(json.dumps({**kept, **changes}))
        code, _, err = call(*on(path, "audit", "verify", "--since-head", head))
        assert (code, err.count("\n")) == (expected, 1), changes
    code, _, err = call(*on(path, "audit", "verify", "--since-head", str(tmp_path / "none")))
    assert (code, "cannot be read" in err) == (1, True)
    Path(head).write_text(json.dumps({**kept, "seq": 3}))
    call.lines(*on(path, "journal", "prune", "--keep", "1s"))
    code, _, err = call(*on(path, "audit", "verify", "--since-head", head))
    assert (code, "was pruned" in err) == (7, True)


def test_signed_checkpoints(path: Path, tmp_path: Path, call: Called) -> None:
    key, public = str(tmp_path / "key.pem"), str(tmp_path / "pub.pem")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    os.chmod(key, 0o600)
    assert "signed with" in call.lines(*on(path, "journal", "checkpoint", "--sign", key))[0]
    call.lines(*on(path, "journal", "verify", "--pubkey", public))
    call.lines(*on(path, "audit", "verify", "--pubkey", public))
    call.lines(*on(path, "journal", "checkpoint"))
    code, out, _ = call(*on(path, "journal", "verify", "--pubkey", public))
    assert (code, "checkpoint" in out) == (6, True)
    code, _, err = call(*on(path, "journal", "checkpoint", "--sign", public))
    assert code == 2
    assert err.count("\n") == 1


def test_a_journal_that_may_not_be_written(path: Path, tmp_path: Path, call: Called) -> None:
    for argv in (["checkpoint"], ["prune", "--keep", "1s"], ["reindex"], ["import", "x"]):
        code, out, err = call("journal", *argv, "--journal", str(tmp_path / "none"))
        assert (code, out) == (1, "")
        assert "no journal in" in err
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    assert call(*on(copy, "journal", "checkpoint"))[0] == 0


def test_following_prints_what_comes(path: Path, tmp_path: Path) -> None:
    """A process of its own: it prints a record that is appended while it runs, and ends when it is told to."""
    root = Path(__file__).resolve().parents[3]
    code = "import sys; from kata_fsm.cli.main import main; main(sys.argv[1:])"
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            "journal",
            "tail",
            "-f",
            "-n",
            "1",
            "--journal",
            str(path),
        ],
        stdout=subprocess.PIPE,
        cwd=root,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            assert main(on(path, "journal", "checkpoint")) == 0
            assert "journal.checkpoint" in process.stdout.readline()
        finally:
            process.terminate()


def test_exit_codes_are_those_of_the_one_table() -> None:
    import journal
    from kata_fsm import errors

    wanted = {
        "JournalDamaged": errors.EXIT_DAMAGED, "JournalVersionError": errors.EXIT_DAMAGED,
        "ChainBroken": errors.EXIT_CHAIN, "JournalPruned": errors.EXIT_GAP, "JournalBusy": errors.EXIT_BUSY,
        "JournalDiskFull": errors.EXIT_NO_SPACE, "JournalReadOnly": errors.EXIT_READ_ONLY,
        "JournalForeign": errors.EXIT_READ_ONLY, "VersionConflict": errors.EXIT_ILLEGAL,
        "StreamMissing": errors.EXIT_FAILED, "JournalMissing": errors.EXIT_FAILED,
    }  # fmt: skip
    assert {name: getattr(journal, name).exit_code for name in wanted} == wanted


@pytest.mark.parametrize(
    "argv", [["stat"], ["tail"], ["verify"], ["list", "-o", "json"], ["get", "1"], ["prune", "--keep", "1s"]]
)
def test_the_verbs_are_lazy(path: Path, argv: list[str]) -> None:
    """None of what only supervisors, networks and signatures need is imported."""
    heavy = {"trio", "pyroute2", "qemu", "cryptography", "google", "transitions", "asyncio", "hypothesis"}
    code = (
        "import sys; from kata_fsm.cli.main import main; code = main(sys.argv[1:]); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr); sys.exit(code)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, "journal", *argv, "--journal", str(path)],
        cwd=Path(__file__).resolve().parents[3], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not heavy & set(ran.stderr.split())


def test_another_hosts_journal_is_taken_over_on_purpose(
    path: Path, call: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kata_fsm.world import World

    monkeypatch.setattr(World, "host_id", lambda self: "host-b")
    with Journal.open(path) as journal:
        stamp = Stamp(1, 1, "boot")
        journal.adopt("host-a", stamp=stamp, reason="it was there first")
    for argv in (["checkpoint"], ["prune", "--keep", "1s"], ["reindex"]):
        code, _, err = call(*on(path, "journal", *argv))
        assert (code, "belongs to `host-a`" in err) == (12, True), argv
    assert call(*on(path, "replay", "web"))[0] == 0
    assert call(*on(path, "journal", "adopt"))[0] == 2, "why must be said"
    assert "belongs to this host" in call.lines(*on(path, "journal", "adopt", "--reason", "the disk was moved"))[0]
    call.lines(*on(path, "journal", "checkpoint"))
    call.lines(*on(path, "journal", "verify"))
