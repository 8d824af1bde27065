# SPDX-License-Identifier: Apache-2.0
"""What all calls share: where things are, what runs, and who waits."""

from __future__ import annotations

from .children import Children
from .errors import not_found
from .loop import Loop, Notice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .containers import Container
    from .processes import Process
    from .rpc_connection import Connection
    from .rpc_names import Questions

_OOM_EVENTS_MAX = 1024  # kept for a host that does not ask


class Settings:
    """Paths in the guest. Tests point them elsewhere."""

    def __init__(self) -> None:
        self.state_dir = "/run/kata-agent"  # bundles, and what is passed to and from crun
        self.crun: tuple[str, ...] = ("/usr/bin/crun",)
        self.crun_root = "/run/crun"
        self.busybox = "/bin/busybox"
        self.cgroup_root = "/sys/fs/cgroup"
        self.shared_root = "/run/kata-containers"  # the host names paths below it
        self.resolv_conf = "/etc/resolv.conf"
        self.sysfs = "/sys"
        self.procfs = "/proc"
        self.crun_timeout_s = 60.0  # a create takes half a second under emulation
        self.log_calls = False  # each on the console, when it comes and when it is answered


class Agent:
    """See the head of this file."""

    def __init__(self, loop: Loop, settings: Settings) -> None:
        self.loop = loop
        self.settings = settings
        self.children = Children(loop)
        self.containers: dict[str, Container] = {}
        self.sandbox_id = ""
        self.sandbox_mounts: list[str] = []  # mount points, in the order they were made
        self._pid_leader: Container | None = None  # whose process namespace the sandbox's containers share
        self.oom_events: list[str] = []  # container ids, oldest first
        self.oom_changed = Notice()
        self.questions: Questions | None = None  # since the host first asked for one
        self.connections: dict[str, Connection] = {}  # into the guest, for somebody on the host
        self.caller: object = None  # the session whose call is being begun
        self._serial = 0

    def session_over(self, session: object) -> None:
        """What belonged to it has lost its other end."""
        for connection in [each for each in self.connections.values() if each.session is session]:
            connection.close(abort=True)

    def container(self, container_id: str) -> Container:
        """Raises NOT_FOUND."""
        container = self.containers.get(container_id)
        if container is None or container.state == "creating":
            raise not_found(f"container `{container_id}` is not in this guest")
        return container

    def process(self, container_id: str, exec_id: str) -> Process:
        """The init process is meant by the container's own id and by "". Raises NOT_FOUND."""
        container = self.container(container_id)
        process = container.processes.get("" if exec_id == container_id else exec_id)
        if process is None or process.state == "creating":
            raise not_found(f"process `{exec_id}` is not in container `{container_id}`")
        return process

    def admit(self, container: Container) -> None:
        """Know a container from now on. The sandbox's own is the first, and the process namespace to share is its: whoever's
        first process ends takes everybody in the namespace along, and others than the sandbox's are restarted."""
        self.containers[container.id] = container
        if self._pid_leader is None:
            self._pid_leader = container

    def shared_pid_namespace(self, container: Container, target: str = "") -> str:
        """The path of the sandbox's process namespace; "" for the container that begins it again, should its own be gone.
        With `target` that of this container. Raises NOT_FOUND when it does not run."""
        leader = self.container(target) if target else self._pid_leader
        if target and (leader is None or leader.init.pid == 0 or leader.init.exit is not None):
            raise not_found(f"container `{target}`, whose processes were to be shared, has ended")
        if leader is None or leader.init.pid == 0 or leader.init.exit is not None:
            self._pid_leader = container
            return ""
        return f"{self.settings.procfs}/{leader.init.pid}/ns/pid"

    def next_serial(self) -> int:
        """A number for a file's name. Ids of containers may be longer than a socket's path can be."""
        self._serial += 1
        return self._serial

    def note_oom(self, container_id: str) -> None:
        """For whoever waits in GetOOMEvent."""
        if len(self.oom_events) < _OOM_EVENTS_MAX:
            self.oom_events.append(container_id)
        self.oom_changed.notify()
