# SPDX-License-Identifier: Apache-2.0
"""Made `data.mdb` and `key.pub.pem` beside this file, once, by format 2. Kept to show how; it refuses to make them again."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from journal import Cut, Journal, NewRecord, Stamp, keys

HERE = Path(__file__).resolve().parent
BOOT = "4f1d3f0e-6c5b-4c43-9d0e-2f3f5b0f8a11"


def stamp(number: int) -> Stamp:
    """A moment of the story."""
    return Stamp(1_700_000_000_000_000_000 + number * 1_000_000_000, 1_000 + number, BOOT)


def fill(journal: Journal, signer: keys.PrivateKey) -> None:
    """Two streams that take turns, one of them long enough for the index of times; then one goes."""
    for number in range(550):
        for name in ("web@0123456789ab", "döner@ba9876543210"):
            at = f"{name}/{number}".encode()
            journal.append(
                name,
                [NewRecord("event", "ticked", {"n": number}, cause=None)],
                stamp=stamp(number if number != 300 else 5),  # once the clock was wrong
                expected_rev=number,
                projections={f"s/{name}".encode(): at},
                snapshot=at if number % 100 == 99 else None,
            )
    journal.checkpoint(stamp=stamp(600))
    journal.checkpoint(stamp=stamp(601), signer=signer)
    journal.prune(
        [Cut("döner@ba9876543210", 550, ("s/döner@ba9876543210".encode(),))], stamp=stamp(602), reason={"why": "old"}
    )
    journal.append("web@0123456789ab", [NewRecord("note", "last", {})], stamp=stamp(603), expected_rev=550)


if __name__ == "__main__":
    if (HERE / "data.mdb").exists():
        sys.exit("the frozen journal exists, and stays")
    with tempfile.TemporaryDirectory() as scratch:
        key = f"{scratch}/key.pem"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
        os.chmod(key, 0o600)
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", HERE / "key.pub.pem"], check=True)
        with Journal.open(HERE, map_bytes=1 << 20, owner=("a-host", stamp(0))) as journal:
            fill(journal, keys.PrivateKey(key))
            print(journal.head())
    for name in ("lock.mdb", "writer.lock"):
        os.unlink(HERE / name)
    os.chmod(HERE / "data.mdb", 0o644)
