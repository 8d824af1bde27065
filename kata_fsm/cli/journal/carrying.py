# SPDX-License-Identifier: Apache-2.0
"""`journal export`, `import`, `forget` and `salvage`: sandboxes in files, to and from other machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kata_fsm import __version__
from kata_fsm.cli.journal.opening import open_for_writing, stamp
from kata_fsm.errors import EXIT_DAMAGED
from kata_fsm.replay.arguments import parser, put

if TYPE_CHECKING:
    from kata_fsm.cli.context import Context

SALVAGE_SCHEMA = "kata-fsm.journal.salvage/1"


def about() -> dict[str, Any]:
    """Who made a bundle, and by which tables."""
    from kata_fsm.machines.pod import TABLE_VERSION

    return {"made_by": "kata-fsm", "version": __version__, "tables": TABLE_VERSION}


def export(context: Context, argv: list[str]) -> int:
    """Write one sandbox, or all, into a bundle."""
    options = parser("journal export", "Write a sandbox's records into a file that `replay` reads on any machine.")
    options.add_argument(
        "subject", nargs="?", default="latest", metavar="SUBJECT", help="named as for `kata-fsm replay`"
    )
    options.add_argument("--all", action="store_true", help="every sandbox in the journal")
    options.add_argument("-O", "--output", required=True, metavar="FILE", help="the bundle, by custom `NAME.kfsm`")
    given = options.parse_args(argv)
    from kata_fsm.replay.escape import harmless
    from kata_fsm.replay.reading import open_host_journal
    from kata_fsm.replay.subject import resolve

    with open_host_journal(given.journal) as journal:
        every = [info.stream for info in journal.streams()] if given.all else []
        header = journal.export(every or [resolve(journal, given.subject).stream], given.output, about())
    records = sum(held.records for held in header.streams)
    names = ", ".join(held.stream for held in header.streams[:3]) + (" …" if len(header.streams) > 3 else "")
    put([harmless(f"{given.output}: {records} records of {len(header.streams)} sandboxes ({names})")])
    return 0


def import_(context: Context, argv: list[str]) -> int:
    """Keep a bundle beside this host's journal."""
    options = parser(
        "journal import", "Keep a bundle here under a name, for `replay NAME`; it is checked and recorded."
    )
    options.add_argument("file", metavar="FILE")
    options.add_argument("--as", dest="name", metavar="NAME", help="default: the file's name without its ending")
    given = options.parse_args(argv)
    name = given.name or Path(given.file).stem
    with open_for_writing(given.journal) as journal:
        told = journal.import_bundle(given.file, name, stamp=stamp()).data
    put([f"{name}: {told['records']} records of {len(told['streams'])} sandboxes; see `kata-fsm replay {name}`"])
    return 0


def forget(context: Context, argv: list[str]) -> int:
    """Remove an imported bundle."""
    options = parser("journal forget", "Remove an imported bundle; that is recorded.")
    options.add_argument("name", metavar="NAME")
    given = options.parse_args(argv)
    with open_for_writing(given.journal) as journal:
        journal.forget(given.name, stamp=stamp())
    put([f"{given.name}: forgotten"])
    return 0


def salvage(context: Context, argv: list[str]) -> int:
    """Read what can be read of a damaged journal, into a bundle; the journal itself is not touched."""
    options = parser(
        "journal salvage", "Read what can be read of a damaged journal, without touching it, into a bundle."
    )
    options.add_argument("directory", metavar="DIR", help="the journal's directory, or a data file")
    options.add_argument("-O", "--output", required=True, metavar="FILE", help="the bundle, by custom `NAME.kfsm`")
    options.add_argument("--json", action="store_true", help="one JSON object")
    given = options.parse_args(argv)
    from journal import bundle, salvage
    from journal.records import unseal_alone
    from kata_fsm.replay.escape import harmless
    from kata_fsm.replay.jsonout import dumps
    from kata_fsm.replay.reading import map_errors

    with map_errors():
        found = salvage.salvage(given.directory)
        stored = [unseal_alone(value) for _, value in found.values()]
        identity = stored[0].record.digest if stored and stored[0].record.seq == 1 else ""
        report = found.report()
        bundle.make(given.output, identity, stored, {**about(), "salvaged": report})
    if given.json:
        fields = {"schema": SALVAGE_SCHEMA, "complete": found.complete, "records": len(stored), "report": report}
        put([dumps({**fields, "missing": found.missing, "output": given.output}, indent=2)])
    else:
        put([*map(harmless, report), f"{given.output}: {'complete' if found.complete else 'NOT complete'}"])
    return 0 if found.complete else EXIT_DAMAGED
