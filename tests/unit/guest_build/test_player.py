# SPDX-License-Identifier: Apache-2.0
"""The program that makes a list of system calls, run here for real."""

import errno
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from guest.build import init, player
from guest.build.player import Call, Child

WRITE, DUP2, EXIT, RMDIR = 1, 33, 60, 84


def run(directory: Path, calls: list[Call | Child]) -> subprocess.CompletedProcess[bytes]:
    """Writes the program and runs it in `directory`."""
    path = directory / "program"
    path.write_bytes(player.program(calls))
    path.chmod(0o755)
    return subprocess.run([path], cwd=directory, capture_output=True, timeout=10)


def test_makes_the_calls_in_order(tmp_path: Path) -> None:
    """Numbers, strings, and the exit of the last one."""
    calls = [
        init.mkdir("made", 0o750),
        Call(WRITE, (1, "hello\n", 6), "write"),
        init.chdir("made"),
        init.mkdir("inner", 0o700),
        Call(EXIT, (7,), "exit"),
    ]
    done = run(tmp_path, calls)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"hello\n", b"")
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o750
    assert (tmp_path / "made/inner").is_dir()


def test_starts_a_program_with_arguments_and_environment(tmp_path: Path) -> None:
    """Arrays of strings, ended by NULL."""
    argv = ("/bin/sh", "-c", 'echo "$0 $1 $WORD"', "zero", "one")
    done = run(tmp_path, [Call(init.EXECVE, (argv[0], argv, ("WORD=two",)), "start sh")])
    assert (done.returncode, done.stdout) == (0, b"zero one two\n")


def test_a_failing_call_is_named_and_its_error_is_the_exit_code(tmp_path: Path) -> None:
    """The calls after it are not made."""
    done = run(tmp_path, [Call(RMDIR, ("missing",), "remove missing"), init.mkdir("after", 0o755)])
    assert done.returncode == errno.ENOENT
    assert done.stderr == b"init: cannot remove missing\n"
    assert not (tmp_path / "after").exists()


@pytest.mark.parametrize(
    ("end", "status"),
    [("exit 0", "0000"), ("exit 255", "ff00"), ("exit 171", "ab00"), ("kill -9 $$", "0009"), ("kill -15 $$", "000f")],
)
def test_a_child_is_waited_for_and_its_end_told(tmp_path: Path, end: str, status: str) -> None:
    """The calls behind it are made when it has ended, by the parent."""
    argv = ("/bin/sh", "-c", f"echo child; {end}")
    calls = (Call(init.CHDIR, ("/",), "leave"), Call(init.EXECVE, (argv[0], argv, ()), "start sh"))
    steps = [
        Call(DUP2, (1, 2), "join"),
        Child(calls, "fork", "it ended: "),
        init.mkdir("after", 0o755),
        Call(EXIT, (7,), "exit"),
    ]
    done = run(tmp_path, steps)
    assert (done.returncode, done.stdout) == (7, f"child\nit ended: {status}\n".encode())
    assert (tmp_path / "after").is_dir()  # the child's directory is its own


def test_a_child_that_cannot_start_says_so(tmp_path: Path) -> None:
    """A call of the child's that fails ends the child, not its parent."""
    steps = [Child((Call(RMDIR, ("missing",), "remove missing"),), "fork", "it ended: "), Call(EXIT, (0,), "exit")]
    done = run(tmp_path, steps)
    assert (done.returncode, done.stderr) == (0, b"init: cannot remove missing\nit ended: 0200\n")


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
def test_the_code_is_what_its_comments_say(tmp_path: Path) -> None:
    """Disassembled by binutils: all jumps land where they should."""
    (tmp_path / "code").write_bytes(player.CODE)
    argv = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "code"]
    text = subprocess.run(argv, cwd=tmp_path, capture_output=True, check=True).stdout.decode()
    rows = [line.split("\t") for line in text.splitlines() if line.startswith("  ") and line.count("\t") >= 2]
    code = {int(row[0].strip(" :"), 16): " ".join(row[2].split()) for row in rows}
    assert list(code.values()).count("syscall") == 6
    assert code[5] == "mov rax,QWORD PTR [rbx]"
    assert "jmp 0x5" in code.values()
    jumps = {name: code[int(target, 16)] for name, target in (text.split() for text in code.values() if text[0] == "j")}
    assert jumps == {
        "js": "mov r12d,eax",
        "jmp": "mov rax,QWORD PTR [rbx]",
        "je": "mov r12d,eax",
        "jne": "or edi,0xffffffff",
        "jb": "mov eax,r12d",
    }
    assert [code[int(text.split()[1], 16)] for text in code.values() if text.startswith("je ")] == [
        "add rbx,0x40",
        "mov r12d,eax",
    ]


def test_init_ends_in_the_agent_and_loads_modules_in_order() -> None:
    """The list as a whole: a pivotable root first, the agent as a child, and then off."""
    steps = init.calls(["/m/a.ko", "/m/b.ko"])
    calls = [step for step in steps if isinstance(step, Call)]
    assert calls[0] == init.mount("/", "/newroot", "", init.MS_BIND)
    assert [c.arguments[0] for c in calls if c.number == init.OPEN] == ["/m/a.ko", "/m/b.ko"]
    child, last = steps[-2:]
    assert isinstance(child, Child)
    assert [call.number for call in child.calls] == [init.PRCTL, init.EXECVE]
    assert last == calls[-1]
    assert (calls[-1].number, calls[-1].arguments[-1]) == (init.REBOOT, init.POWER_OFF)
    mounted = [c.arguments[1] for c in calls if c.number == init.MOUNT]
    assert mounted.index("/dev") < mounted.index("/dev/pts")
    assert mounted.index("/sys") < mounted.index("/sys/fs/cgroup")
