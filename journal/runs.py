# SPDX-License-Identifier: Apache-2.0
"""Sets of seqs as ranges, and how a tombstone writes them down.

A *range* is (first, last), both included. Lists of ranges are in order, disjoint, and never touch each other.
"""

from collections.abc import Iterable

Range = tuple[int, int]


def of(seqs: Iterable[int]) -> list[Range]:
    """The ranges of seqs that come in order."""
    return union((seq, seq) for seq in seqs)


def union(ranges: Iterable[Range]) -> list[Range]:
    """Ranges in order of their first, which may overlap or touch, as a list of ranges that do neither."""
    found: list[Range] = []
    for first, last in ranges:
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def difference(ranges: list[Range], without: list[Range]) -> list[Range]:
    """What of `ranges` is not in `without`."""
    found = []
    taken = iter(without)
    other = next(taken, None)
    for first, last in ranges:
        while other is not None and other[1] < first:
            other = next(taken, None)
        while other is not None and other[0] <= last:
            if first < other[0]:
                found.append((first, other[0] - 1))
            first = other[1] + 1
            if other[1] > last:
                break
            other = next(taken, None)
        if first <= last:
            found.append((first, last))
    return found


def count(ranges: Iterable[Range]) -> int:
    """How many seqs they hold."""
    return sum(last - first + 1 for first, last in ranges)


def packed(ranges: Iterable[Range]) -> list[int]:
    """As a tombstone has them: how many to skip, how many to take, and so on in turn, beginning before seq 1."""
    numbers = []
    at = 1
    for first, last in ranges:
        numbers += [first - at, last - first + 1]
        at = last + 1
    return numbers


def unpacked(numbers: list[int]) -> list[Range]:
    """The inverse of `packed`. Raises ValueError when it cannot be."""
    found: list[Range] = []
    at = 1
    for skip, take in zip(numbers[::2], numbers[1::2], strict=True):
        if skip < (1 if found else 0) or take < 1:
            raise ValueError(f"`{skip}` skipped and `{take}` taken at `{at}`")
        found.append((at + skip, at + skip + take - 1))
        at += skip + take
    return found
