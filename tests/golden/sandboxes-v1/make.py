# SPDX-License-Identifier: Apache-2.0
"""Made `data.mdb` and `ends.json` beside this file, once, with version 1 of the tables. It refuses to make them again.

It was run by its path, with the repository's root in PYTHONPATH.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from kata_fsm.machines.pod import summary
from tests.support.pods import Host
from tests.support.stories import STORIES

HERE = Path(__file__).resolve().parent


def main() -> None:
    """One stream for each story that the tests of replay tell."""
    if (HERE / "data.mdb").exists():
        sys.exit("a frozen journal is never made again: add a directory of its own for a new version")
    with tempfile.TemporaryDirectory() as scratch:
        host = Host(Path(scratch) / "journal")
        ends = {}
        for number, story in enumerate(STORIES):
            pod = host.sandbox(story.__name__, f"{number:012x}")
            story(pod)
            ends[pod.stream] = summary(pod.pod)
        host.close()
        shutil.copyfile(Path(scratch) / "journal" / "data.mdb", HERE / "data.mdb")
        (HERE / "ends.json").write_text(json.dumps(ends, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
