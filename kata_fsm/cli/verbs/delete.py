# SPDX-License-Identifier: Apache-2.0
"""`delete ID...`: delete stopped containers; with --force, containers in any state, and unknown ids are no error."""

from __future__ import annotations

import os

from journal import JournalError
from kata_fsm.cli import ask, client, log, lookup
from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context
from kata_fsm.control import lock_is_free
from kata_fsm.errors import KataFsmError, NotFoundError, RemoteError, SupervisorGone, SupervisorSilent
from kata_fsm.oci.names import check_id


def run(context: Context, argv: list[str]) -> int:
    """Delete each container, in order."""
    parser = Parser("delete", "delete containers")
    parser.add_argument("--force", "-f", action="store_true", help="kill what runs; succeed when there is nothing")
    parser.container(nargs="+")
    options = parser.parse_args(argv)
    for container_id in options.id:
        delete(context, container_id, force=options.force)
    return 0


def delete(context: Context, container_id: str, *, force: bool) -> None:
    """Delete one container. containerd and podman call this with force for ids that are long gone."""
    try:
        found = lookup.require(context, container_id if force else check_id(container_id))
        try:
            _delete_once(context, found, force=force)
        except SupervisorGone as gone:
            if isinstance(gone, SupervisorSilent) and not force:
                raise
            _delete_the_rest(context, found, force=force)
    except (NotFoundError, RemoteError) as error:
        # Gone meanwhile, or never there. With force that is what was wanted.
        if not force or error.family != "not_found":
            raise
        log.warn(context, f"delete --force: {error}")


def _delete_once(context: Context, found: lookup.Found, *, force: bool) -> None:
    from kata_fsm.machines.vocab import Delete

    ask.refuse_illegal(found, Delete(found.key, force))
    if force:
        client.end_silent(found.stream)
    log.warn_all(context, client.ask(context, found, "delete", force=force))


def _delete_the_rest(context: Context, found: lookup.Found, *, force: bool) -> None:
    """Finish what a supervisor that ended in the middle, or is stuck, had begun: the deletion, or what comes after it was
    recorded, the last traces of the sandbox, which another supervisor takes away."""
    left = lookup.find(context, found.id)
    if left is not None:
        try:
            _delete_once(context, left, force=force)
        except (NotFoundError, RemoteError) as error:
            if error.family != "not_found":
                raise
            # the supervisor that came in its place had finished it before it could be asked
    elif os.path.isdir(found.paths.base) and lock_is_free(found.paths.supervisor_lock):
        lookup.recover(found)


def clean_up(context: Context, container_id: str) -> None:
    """Delete a container of our own that has ended or failed. Its exit code or error counts more than a clean-up that
    failed: that is logged, and stays visible in `list`."""
    try:
        delete(context, container_id, force=True)
    except (KataFsmError, JournalError) as error:
        log.write(context, "error", f"container `{container_id}` could not be deleted: {error}")
