# SPDX-License-Identifier: Apache-2.0
"""Binds are what was asked for, read-only from the first moment, and go away without taking anything along."""

import os
from pathlib import Path

import pytest

from kata_fsm import errors
from kata_fsm.effects import logs, mounts, tree


@pytest.fixture
def source(place) -> Path:
    directory = place.work / "source"
    (directory / "inner").mkdir(parents=True)
    (directory / "file").write_text("precious")
    (place.work / "other").mkdir()
    (place.work / "other" / "deep").write_text("also precious")
    (place.work / "target").mkdir()
    return directory


def test_escapes_of_the_mount_table():
    line = "36 35 98:0 /a\\040b /m\\134n\\011 rw,noatime master:1 shared:2 - ext3 /dev/r\\012t rw,errors=continue\n"
    (mount,) = mounts.parse_mountinfo(line)
    assert mount.root == "/a b"
    assert mount.point == "/m\\n\t"
    assert mount.optional == ("master:1", "shared:2")
    assert mount.source == "/dev/r\nt"
    assert not mount.readonly


def test_a_bind_is_private_and_goes(place, source):
    target = f"{place.work}/target"
    mounts.bind(str(source), target)
    assert Path(target, "file").read_text() == "precious"
    (mount,) = mounts.at(target)
    assert not mount.readonly
    assert not mount.optional
    assert mounts.unmount_below(target) == [target]
    assert os.listdir(target) == []


@pytest.mark.parametrize("recursive", [True, False])
def test_recursion(place, source, recursive):
    mounts.bind(f"{place.work}/other", f"{source}/inner")
    mounts.bind(str(source), f"{place.work}/target", recursive=recursive)
    assert Path(place.work, "target/inner/deep").exists() is recursive
    mounts.unmount_below(f"{place.work}/target")
    assert Path(source, "inner/deep").read_text() == "also precious"
    mounts.unmount_below(f"{source}/inner")


def test_readonly_is_the_top_mount_and_rro_all(place, source):
    mounts.bind(f"{place.work}/other", f"{source}/inner")
    target = Path(place.work, "target")
    mounts.bind(str(source), str(target), readonly=True)
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "new").touch()
    (target / "inner/new").touch()
    mounts.unmount_below(str(target))
    mounts.bind(str(source), str(target), readonly_recursive=True)
    for path in (target / "new", target / "inner/newer"):
        with pytest.raises(OSError, match="Read-only file system"):
            path.touch()
    mounts.unmount_below(str(target))
    mounts.unmount_below(f"{source}/inner")


def test_a_file_on_a_file(place, source):
    tree.make_place(f"{place.work}/there", directory=False)
    mounts.bind(f"{source}/file", f"{place.work}/there", readonly=True)
    assert Path(place.work, "there").read_text() == "precious"
    mounts.unmount_below(f"{place.work}/there")
    tree.remove_tree(f"{place.work}/there")
    assert Path(source, "file").read_text() == "precious"


def test_errors_are_one_clear_line(place, source):
    target = f"{place.work}/target"
    with pytest.raises(errors.EffectError, match=f"^cannot bind `/no/such` on `{target}`: No such file or directory$"):
        mounts.bind("/no/such", target)
    with pytest.raises(errors.EffectError, match=r"cannot bind .*file`"):
        mounts.bind(f"{source}/file", target)


def test_a_link_is_never_mounted_on(place, source):
    os.symlink(place.work / "target", place.work / "link")
    with pytest.raises(errors.EffectError, match="cannot bind"):
        mounts.bind(str(source), f"{place.work}/link")
    assert not mounts.below(place.top)


def test_a_busy_mount_leaves_the_tree_all_the_same(place, source):
    target = f"{place.work}/target"
    mounts.bind(f"{place.work}/other", f"{source}/inner")
    mounts.bind(str(source), target)
    with open(f"{target}/inner/deep"), open(f"{target}/file"):
        assert mounts.unmount_below(target) == [f"{target}/inner", target]
    assert not mounts.below(target)
    mounts.unmount_below(f"{source}/inner")


def test_a_path_through_a_link_is_found_in_the_table(place, source):
    os.symlink(place.work, f"{place.top}/alias")
    mounts.bind(str(source), f"{place.top}/alias/target")
    assert mounts.at(f"{place.top}/alias/target")
    assert mounts.unmount_below(f"{place.top}/alias") == [f"{place.work}/target"] or mounts.unmount_below(
        f"{place.top}/alias/target"
    )


def test_removal_refuses_mounts_and_content(place, source):
    target = f"{place.work}/target"
    mounts.bind(str(source), target)
    with pytest.raises(errors.EffectError, match=f"`{target}` is not removed: `{target}` is still mounted"):
        tree.remove_tree(target)
    mounts.unmount_below(target)
    with pytest.raises(errors.EffectError, match=f"cannot remove `{source}/file`: it is not an empty file of ours"):
        tree.remove_tree(str(source))
    assert Path(source, "file").read_text() == "precious"
    tree.remove_tree(target)
    tree.remove_tree(target)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_names_that_are_no_names(name):
    with pytest.raises(errors.EffectError, match="cannot name a directory"):
        tree.checked_name(name, "container")


def test_a_log_is_cut_under_its_writer(place):
    path = f"{place.work}/log"
    with open(path, "ab", buffering=0) as writer:
        writer.write(b"".join(b"line %06d\n" % number for number in range(1000)))
        assert not logs.cut(path, 1 << 20)
        assert logs.cut(path, 4096)
        writer.write(b"after\n")
    assert os.path.getsize(path) < 2048
    assert logs.tail(path, 4096).endswith("line 000999\nafter\n")
    assert logs.tail(path, 12) == "after\n"
    assert logs.tail(path + ".none", 12) == ""


def test_the_guest_cannot_speak_to_the_terminal():
    assert logs.printable(b"a\x1b[31mb\x07\r\nc\rd\xff\n") == "a\ufffd[31mb\ufffd\nc\nd\ufffd\n"
    assert logs.last_line("one\ntwo\n\n") == "two"
