# SPDX-License-Identifier: Apache-2.0
"""`python -m guest.build`: makes the guest image, or finds it up to date."""

import argparse
import sys
from pathlib import Path

from guest.build.errors import BuildError
from guest.build.image import Layout, build

DEFAULT = Layout()


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(prog="python -m guest.build", description=__doc__)
    found.add_argument("--out", type=Path, default=DEFAULT.out, metavar="DIR", help="default: %(default)s")
    found.add_argument("--work", type=Path, default=DEFAULT.work, metavar="DIR", help="downloads; default: %(default)s")
    found.add_argument("--agent", type=Path, default=DEFAULT.agent, metavar="DIR", help="another agent's sources")
    found.add_argument("--wire", type=Path, default=DEFAULT.wire, metavar="DIR", help="another wire package")
    found.add_argument("--update", action="store_true", help="ask apt for the newest versions")
    found.add_argument("--force", action="store_true", help="build even if nothing changed")
    return found


def main() -> int:
    """Builds; 0 or 1."""
    options = parser().parse_args()
    layout = Layout(out=options.out.absolute(), work=options.work.absolute(), agent=options.agent, wire=options.wire)
    try:
        manifest, built = build(layout, update=options.update, force=options.force)
    except BuildError as error:
        print(f"guest image: {error}" + (f" ({error.hint})" if error.hint else ""), file=sys.stderr)
        return 1
    size = manifest["files"]["initrd"]["size"] / 2**20
    word = "built" if built else "up to date"
    print(f"guest image: {word}: linux {manifest['kernel']}, initrd {size:.1f} MiB, in {layout.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
