# SPDX-License-Identifier: Apache-2.0
"""The program that makes a list of system calls, run here for real."""

import errno
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from guest.build import init, player
from guest.build.player import Call

WRITE, DUP2, EXIT, RMDIR = 1, 33, 60, 84


def run(directory: Path, calls: list[Call]) -> subprocess.CompletedProcess[bytes]:
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


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
def test_the_code_is_what_its_comments_say(tmp_path: Path) -> None:
    """Disassembled by binutils: both jumps land where they should."""
    (tmp_path / "code").write_bytes(player.CODE)
    argv = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "code"]
    text = subprocess.run(argv, cwd=tmp_path, capture_output=True, check=True).stdout.decode()
    rows = [line.split("\t") for line in text.splitlines() if line.startswith("  ") and line.count("\t") >= 2]
    code = {int(row[0].strip(" :"), 16): " ".join(row[2].split()) for row in rows}
    assert list(code.values()).count("syscall") == 3
    assert code[5] == "mov rax,QWORD PTR [rbx]"
    assert "jmp 0x5" in code.values()
    target = next(text.split()[-1] for text in code.values() if text.startswith("js "))
    assert code[int(target, 16)] == "mov r12d,eax"


def test_init_ends_in_the_agent_and_loads_modules_in_order() -> None:
    """The list as a whole: a pivotable root first, the agent last."""
    calls = init.calls(["/m/a.ko", "/m/b.ko"])
    assert calls[0] == init.mount("/", "/newroot", "", init.MS_BIND)
    assert [c.arguments[0] for c in calls if c.number == init.OPEN] == ["/m/a.ko", "/m/b.ko"]
    assert calls[-1].number == init.EXECVE
    mounted = [c.arguments[1] for c in calls if c.number == init.MOUNT]
    assert mounted.index("/dev") < mounted.index("/dev/pts")
    assert mounted.index("/sys") < mounted.index("/sys/fs/cgroup")
