# SPDX-License-Identifier: Apache-2.0
"""The initramfs writer: what goes in comes out, by our own reader and by the `cpio` tool, and always as the same bytes."""

import shutil
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.build import cpio
from guest.build.errors import BuildError
from guest.build.tree import Entry, Tree

NAMES = st.text("abcXYZ0.-_ä", min_size=1, max_size=20).filter(lambda name: name.strip(".") != "")
FILES = st.dictionaries(NAMES, st.tuples(st.binary(max_size=200), st.sampled_from([0o644, 0o755, 0o4755])), max_size=8)


def sample() -> Tree:
    """One of each kind."""
    tree = Tree()
    tree.file("usr/bin/tool", b"#!/bin/sh\n", 0o755)
    tree.file("empty", b"")
    tree.symlink("bin", "usr/bin")
    tree.device("dev/console", 5, 1)
    tree.directory("tmp", 0o1777)
    return tree


@given(FILES)
def test_what_is_packed_is_unpacked(files: dict[str, tuple[bytes, int]]) -> None:
    """Names, modes and bytes survive, in sorted order."""
    tree = Tree()
    for name, (data, mode) in files.items():
        tree.file("d/" + name, data, mode)
    archive = cpio.pack(tree)
    assert list(cpio.unpack(archive)) == list(tree)
    assert len(archive) % 512 == 0


def test_bytes_do_not_depend_on_the_order_of_adding() -> None:
    """A tree is sorted by path."""
    one, other = Tree(), Tree()
    for name in ("a", "b/c", "b/d"):
        one.file(name, name.encode())
    for name in ("b/d", "a", "b/c"):
        other.file(name, name.encode())
    assert cpio.pack(one) == cpio.pack(other)


def test_header_is_as_the_kernel_reads_it() -> None:
    """The first header, field by field (newc: 13 fields of 8 hex digits)."""
    archive = cpio.pack([Entry("f", stat.S_IFREG | 0o644, b"xyz")])
    fields = [int(archive[i : i + 8], 16) for i in range(6, 110, 8)]
    assert archive[:6] == b"070701"
    assert fields == [1, 0o100644, 0, 0, 1, 0, 3, 0, 0, 0, 0, 2, 0]
    assert archive[110:112] == b"f\0"
    assert archive[112:115] == b"xyz"
    assert archive[116:122] == b"070701"


@pytest.mark.skipif(shutil.which("cpio") is None, reason="the cpio tool is not installed")
def test_the_cpio_tool_reads_it() -> None:
    """The listing of another implementation."""
    listing = subprocess.run(["cpio", "-tv", "--quiet"], input=cpio.pack(sample()), capture_output=True, check=True)
    rows = [line.split() for line in listing.stdout.decode().splitlines()]
    assert [(row[0], row[1]) for row in rows if row[-1] == "dev/console"] == [("crw-------", "1")]
    assert {row[-1] for row in rows} >= {"usr/bin/tool", "empty", "tmp", "dev"}
    assert any("bin -> usr/bin" in " ".join(row) for row in rows)
    assert all(row[2:4] == ["root", "root"] for row in rows)


def test_a_damaged_archive_is_refused() -> None:
    """Cut short, or not an archive at all."""
    archive = cpio.pack(sample())
    with pytest.raises(BuildError, match="no cpio header at byte 0"):
        list(cpio.unpack(b"not an archive"))
    with pytest.raises(BuildError, match=r"no cpio header|cut short"):
        list(cpio.unpack(archive[:300]))


def test_a_path_is_given_once() -> None:
    """Two files of one name are a mistake in the recipe, not the second one's luck."""
    tree = Tree()
    tree.file("a/b", b"")
    with pytest.raises(BuildError, match="`/a/b` is in the image twice"):
        tree.file("a/b", b"")
    with pytest.raises(BuildError, match="no directory"):
        tree.file("a/b/c", b"")
    with pytest.raises(BuildError, match="no path inside the image"):
        tree.file("../x", b"")
