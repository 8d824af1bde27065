# SPDX-License-Identifier: Apache-2.0
"""Finding containers by their projections. Hot path: C modules, lmdb, and nothing that costs milliseconds."""

from kata_fsm import cjson
from kata_fsm.cli.context import Context
from kata_fsm.control import lock_is_free
from kata_fsm.errors import DamagedData, NotFoundError
from kata_fsm.oci.names import container_key, root_prefix
from kata_fsm.world import Paths, journal_dir


class Found:
    """One container as its projection tells it."""

    __slots__ = ("document", "home", "id", "key", "live", "row", "sandbox", "state", "stream", "uid")

    def __init__(self, container_id: str, value: bytes) -> None:
        try:
            fields = cjson.loads_object(value)
            self.id = container_id
            self.stream = str(fields["stream"])
            self.uid = str(fields["uid"])
            self.sandbox = str(fields["sandbox"])
            self.key = str(fields["key"])
            self.document = str(fields["oci"])
            self.live = bool(fields["live"])
            self.state = str(fields.get("state", ""))
            self.home = fields.get("home")
            self.row = fields["list"]
        except (ValueError, KeyError) as error:
            raise DamagedData(
                f"the projection of container `{container_id}` does not read: {error}",
                hint="run `kata-fsm journal verify`",
            ) from error

    @property
    def status(self) -> str:
        """The OCI status."""
        return str(cjson.loads_object(self.document).get("status", "unknown"))

    def _field(self, name: str) -> object:
        return self.row.get(name) if isinstance(self.row, dict) else None

    @property
    def bundle(self) -> str:
        """The bundle it was created from, which may be gone."""
        return str(self._field("bundle") or "")

    @property
    def pid(self) -> int:
        """The host pid of its process, its shim; 0 once that has ended."""
        pid = self._field("pid")
        return pid if isinstance(pid, int) else 0

    @property
    def paths(self) -> Paths:
        """Where its sandbox's sockets and files are."""
        return Paths(self.uid)

    @property
    def orphaned(self) -> bool:
        """Whether its sandbox lives but nobody supervises it."""
        return self.live and lock_is_free(self.paths.supervisor_lock)


def does_not_exist(container_id: str) -> NotFoundError:
    """The error for an unknown id, in words that containerd and podman look for."""
    return NotFoundError(
        f"Container ID ({container_id}) does not exist", hint="see `kata-fsm list`; --root is the namespace"
    )


def find(context: Context, container_id: str) -> Found | None:
    """The container under `--root`, or None."""
    from journal import peek

    context.container = container_id
    try:
        journal = peek.open(journal_dir())
    except FileNotFoundError:
        return None
    with journal:
        value = journal.get(container_key(context.root, container_id))
    if value is None:
        return None
    found = Found(container_id, value)
    context.stream = found.stream
    return found


def require(context: Context, container_id: str) -> Found:
    """Like `find`, raising `NotFoundError`."""
    found = find(context, container_id)
    if found is None:
        raise does_not_exist(container_id)
    return found


def find_all(context: Context) -> list[Found]:
    """Every container under `--root`, in id order."""
    from journal import peek

    prefix = root_prefix(context.root)
    try:
        journal = peek.open(journal_dir())
    except FileNotFoundError:
        return []
    with journal:
        rows = journal.scan(prefix)
    return [Found(key[len(prefix) :].decode(), value) for key, value in rows]


def recover(found: Found) -> None:
    """Start a supervisor for an orphaned sandbox and wait until it has caught up with the world."""
    from kata_fsm.spawn import start_supervisor

    start_supervisor(found.sandbox, found.stream, resume=True)
