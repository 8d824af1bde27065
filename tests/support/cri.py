# SPDX-License-Identifier: Apache-2.0
"""A private containerd that serves the container runtime interface, as a kubelet sees it, and a client of a few calls.

It lives in a network namespace of its own, so its bridge, its pods' interfaces and its streaming server meet nobody's.
"""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from kata_fsm.spawn import set_namespace
from tests.support.containerd import IMAGE, Containerd, image_archive
from tests.support.kata import LIMIT_S, wait_until
from tests.support.websocket import STATUS, Streams

PAUSE = "localhost/pause:latest"
SUBNET = "10.213.0.0/24"


@functools.cache
def messages() -> Any:
    """The classes of cri.proto, compiled when a test first asks for them (grpcio-tools)."""
    import grpc

    before = list(sys.path)
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return grpc.protos("cri.proto")
    finally:
        sys.path[:] = before


class Client:
    """`call("RunPodSandbox", request)` of the runtime service on a Unix socket."""

    def __init__(self, path: str) -> None:
        import grpc

        self._channel = grpc.insecure_channel(f"unix:{path}")
        service = messages().DESCRIPTOR.services_by_name["RuntimeService"]
        self._methods = {method.name: method for method in service.methods}

    def call(self, name: str, request: Any = None) -> Any:
        """The answer. Raises `grpc.RpcError`."""
        from google.protobuf.message_factory import GetMessageClass

        method = self._methods[name]
        asked = GetMessageClass(method.input_type)
        answer = GetMessageClass(method.output_type)
        call = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{name}",
            request_serializer=asked.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(asked() if request is None else request, timeout=LIMIT_S)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()


class Cri(Containerd):
    """The daemon with its CRI plugin, its client, and what tests do with both."""

    def __init__(self, base: Path, rootfs: Path) -> None:
        self.netns = base.name
        self.parent = f"/{base.name}"  # the pods' cgroup, as a kubelet makes one
        subprocess.run(["ip", "netns", "add", self.netns], check=True)
        subprocess.run(["ip", "-n", self.netns, "link", "set", "lo", "up"], check=True)
        super().__init__(base, rootfs)
        pause = base / "pause"
        pause.mkdir()
        image_archive(rootfs, pause / "image.tar", name=PAUSE, command=("sleep", "1000000000"))
        for archive in (base / "image.tar", pause / "image.tar"):
            self("-n", "k8s.io", "image", "import", "--snapshotter=native", str(archive))
        self.client = Client(f"{base}/c.sock")
        wait_until(self._answers, "containerd's CRI plugin knows the images")

    def _answers(self) -> bool:
        import grpc

        try:
            self.client.call("Version")
        except grpc.RpcError:
            return False
        return True

    def settings(self) -> str:
        """containerd's configuration, and beside it the one of the pods' network."""
        base = self.base
        (base / "net").mkdir()
        ipam = {"type": "host-local", "dataDir": f"{base}/ipam", "ranges": [[{"subnet": SUBNET}]]}
        bridge = {"type": "bridge", "bridge": "kf0", "isGateway": True, "ipMasq": False, "ipam": ipam}
        network = {"cniVersion": "0.4.0", "name": "kf", "plugins": [bridge]}
        (base / "net" / "10-kf.conflist").write_text(json.dumps(network))
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        return (
            f'version = 2\nroot = "{base}/cr"\nstate = "{base}/cs"\n[grpc]\naddress = "{base}/c.sock"\n'
            f'[plugins."io.containerd.internal.v1.opt"]\npath = "{base}/opt"\n'
            f'[{cri}]\nsandbox_image = "{PAUSE}"\nrestrict_oom_score_adj = true\ndisable_apparmor = true\n'
            f'stream_server_address = "127.0.0.1"\n'
            f'[{cri}.cni]\nbin_dir = "/usr/lib/cni"\nconf_dir = "{base}/net"\n'
            f'[{cri}.containerd]\nsnapshotter = "native"\ndefault_runtime_name = "ours"\n'
            f'[{cri}.containerd.runtimes.ours]\nruntime_type = "io.containerd.runc.v2"\n'
            f'pod_annotations = ["io.katacontainers.*"]\n'
            f'[{cri}.containerd.runtimes.ours.options]\nBinaryName = "{self.runtime}"\nRoot = "{base}/rr"\n'
        )

    def daemon_argv(self, settings: Path) -> list[str]:
        """containerd in the namespace. Only the network's: `ip netns exec` would also hide the cgroups in /sys."""
        return ["nsenter", f"--net=/run/netns/{self.netns}", *super().daemon_argv(settings)]

    def call(self, name: str, request: Any) -> Any:
        """A call that has to succeed; fails with what ours have to say."""
        import grpc

        try:
            return self.client.call(name, request)
        except grpc.RpcError as error:
            said = f"{error.details()}\n{self.kata.logs()}\n{self.kata.latest_story()}"  # type: ignore[attr-defined]
            pytest.fail(f"{name}: {said}")

    def pod(self, name: str, **how: Any) -> Pod:
        """A new pod, as `Pod` describes it."""
        return Pod(self, name, **how)

    def links(self) -> set[str]:
        """The names of the interfaces in its network namespace."""
        listed = subprocess.run(["ip", "-n", self.netns, "-j", "link"], capture_output=True, text=True, check=True)
        return {link["ifname"] for link in json.loads(listed.stdout)}

    def connect(self, host: str, port: int) -> socket.socket:
        """A connection from its network namespace, where its streaming server listens and its bridge leads to the pods."""
        made: list[socket.socket] = []

        def connect() -> None:
            with open(f"/run/netns/{self.netns}", "rb") as namespace:
                set_namespace(namespace.fileno())
            made.append(socket.create_connection((host, port), LIMIT_S))

        # A thread has a network namespace of its own, and a socket stays in the one that it was made in.
        thread = threading.Thread(target=connect)
        thread.start()
        thread.join()
        return made[0]

    def streams(self, url: str) -> Streams:
        """A connection to the streaming server."""
        parts = urlsplit(url)
        return Streams(self.connect(parts.hostname or "", parts.port or 0), url)

    def restart(self) -> None:
        """End the daemon and start it again; its shims, and the pods, live on."""
        super().close()
        self.start(self.base / "config.toml")
        wait_until(self._answers, "containerd's CRI plugin answers again")

    def clean_up(self) -> None:
        """Remove every pod that a test left, as `crictl rmp -f` does."""
        for pod in self.client.call("ListPodSandbox").items:
            request = messages().PodRequest(pod_sandbox_id=pod.id)
            self.call("StopPodSandbox", request)
            self.call("RemovePodSandbox", request)

    def close(self) -> None:
        """End the daemon, and take the namespace away with all that is in it."""
        self.client.close()
        super().close()
        subprocess.run(["ip", "netns", "delete", self.netns], check=True)


class Pod:
    """One pod sandbox. `shared_pids`: its containers see each other's processes. `host_network`: it asks for none of its
    own. `linux`: fields of the interface's
    LinuxPodSandboxConfig."""

    def __init__(
        self, cri: Cri, name: str, *, shared_pids: bool = False, host_network: bool = False, **linux: Any
    ) -> None:
        kinds = messages()
        self.cri = cri
        self.namespaces = kinds.NamespaceOption(
            pid=kinds.POD if shared_pids else kinds.CONTAINER, network=kinds.NODE if host_network else kinds.POD
        )
        self.logs = cri.base / "logs" / name
        self.logs.mkdir(parents=True, exist_ok=True)
        self.config = kinds.PodConfig(
            metadata=kinds.PodMetadata(name=name, uid=f"{name}-uid", namespace="tests"),
            hostname=name,
            log_directory=str(self.logs),
            dns_config=kinds.DnsConfig(servers=["10.213.0.1"], searches=["tests.local"]),
            linux=kinds.LinuxPod(
                cgroup_parent=f"{cri.parent}/{name}",
                security_context=kinds.PodSecurity(namespace_options=self.namespaces),
                **linux,
            ),
        )
        request = kinds.RunPodSandboxRequest(config=self.config)
        self.id: str = cri.call("RunPodSandbox", request).pod_sandbox_id

    def _asked(self) -> Any:
        return messages().PodRequest(pod_sandbox_id=self.id)

    def status(self) -> Any:
        """The interface's PodSandboxStatus."""
        return self.cri.call("PodSandboxStatus", self._asked()).status

    def stats(self) -> Any:
        """The interface's LinuxPodSandboxStats."""
        return self.cri.call("PodSandboxStats", self._asked()).stats.linux

    def create(
        self,
        name: str,
        *command: str,
        attempt: int = 0,
        limits: dict[str, int] | None = None,
        looks_into: Container | None = None,
        **fields: Any,
    ) -> Container:
        """A container of it. `limits`: of the interface's LinuxContainerResources, `fields`: of its ContainerConfig.
        `looks_into`: whose processes it shares, as `kubectl debug --target` asks for."""
        kinds = messages()
        namespaces = self.namespaces
        if looks_into is not None:
            namespaces = kinds.NamespaceOption(pid=kinds.TARGET, target_id=looks_into.id)
        linux = kinds.LinuxContainer(
            resources=kinds.Resources(**limits or {}),
            security_context=kinds.ContainerSecurity(namespace_options=namespaces),
        )
        config = kinds.ContainerConfig(
            metadata=kinds.ContainerMetadata(name=name, attempt=attempt),
            image=kinds.ImageSpec(image=IMAGE),
            command=command,
            log_path=f"{name}-{attempt}.log",
            linux=linux,
            **fields,
        )
        request = kinds.CreateContainerRequest(pod_sandbox_id=self.id, config=config, sandbox_config=self.config)
        made = self.cri.call("CreateContainer", request).container_id
        return Container(self.cri, made, self.logs / config.log_path)

    def run(self, name: str, *command: str, **how: Any) -> Container:
        """A container of it that has been started; `how` as for `create`."""
        container = self.create(name, *command, **how)
        container.start()
        return container

    def forward(self, port: int) -> Streams:
        """A connection that is meant to reach what listens on the pod's own `localhost`."""
        request = messages().PortForwardRequest(pod_sandbox_id=self.id, port=[port])
        return self.cri.streams(self.cri.call("PortForward", request).url + f"?port={port}")

    def stop(self) -> None:
        """Stop all its containers, and it."""
        self.cri.call("StopPodSandbox", self._asked())

    def remove(self) -> None:
        """Remove it, and all its containers."""
        self.cri.call("RemovePodSandbox", self._asked())


class Container:
    """One container of a pod. `log`: its log file, in the interface's format."""

    def __init__(self, cri: Cri, made: str, log: Path) -> None:
        self.cri = cri
        self.id = made
        self.log = log

    def _asked(self) -> Any:
        return messages().ContainerRequest(container_id=self.id)

    def start(self) -> None:
        """Start it."""
        self.cri.call("StartContainer", self._asked())

    def refused_start(self) -> str:
        """Why it cannot be started."""
        import grpc

        with pytest.raises(grpc.RpcError) as refused:
            self.cri.client.call("StartContainer", self._asked())
        return str(refused.value.details())  # type: ignore[attr-defined]

    def stop(self, timeout_s: int = 0) -> None:
        """Stop it: by force after `timeout_s`."""
        self.cri.call("StopContainer", messages().StopContainerRequest(container_id=self.id, timeout=timeout_s))

    def remove(self) -> None:
        """Remove it."""
        self.cri.call("RemoveContainer", self._asked())

    def status(self) -> Any:
        """The interface's ContainerStatus."""
        return self.cri.call("ContainerStatus", self._asked()).status

    def stats(self) -> Any:
        """The interface's ContainerStats."""
        return self.cri.call("ContainerStats", self._asked()).stats

    def wait(self) -> int:
        """Wait until it has ended; its exit code."""
        ended = messages().CONTAINER_EXITED
        status = wait_until(lambda: (at := self.status()).state == ended and at, f"container {self.id} has ended")
        return int(status.exit_code)

    def update(self, **resources: int) -> None:
        """Change its limits: fields of the interface's LinuxContainerResources."""
        kinds = messages()
        request = kinds.UpdateContainerResourcesRequest(container_id=self.id, linux=kinds.Resources(**resources))
        self.cri.call("UpdateContainerResources", request)

    def exec(self, *command: str) -> tuple[int, str, str]:
        """Run a command in it to its end: (exit code, stdout, stderr)."""
        request = messages().ExecSyncRequest(container_id=self.id, cmd=command, timeout=int(LIMIT_S))
        done = self.cri.call("ExecSync", request)
        return done.exit_code, done.stdout.decode(), done.stderr.decode()

    def shell(self, script: str) -> str:
        """The output of a shell script that has to succeed."""
        code, out, err = self.exec("sh", "-c", script)
        assert code == 0, f"exit code {code}: {out}{err}"
        return out

    def exec_streams(self, *command: str, tty: bool = False) -> Streams:
        """Run a command in it over the streaming server."""
        request = messages().ExecRequest(
            container_id=self.id, cmd=command, tty=tty, stdin=True, stdout=True, stderr=not tty
        )
        return self.cri.streams(self.cri.call("Exec", request).url)

    def attach(self, *, tty: bool = False) -> Streams:
        """Attach to its first process."""
        request = messages().AttachRequest(container_id=self.id, tty=tty, stdin=True, stdout=True, stderr=not tty)
        return self.cri.streams(self.cri.call("Attach", request).url)

    def lines(self) -> list[tuple[str, str]]:
        """(stream, text) of each line of its log: `TIME STREAM F|P TEXT` (the interface's format)."""
        found = (line.split(" ", 3) for line in self.log.read_text().splitlines())
        return [(stream, text) for _, stream, _, text in found]


def exit_code(streams: Streams) -> int:
    """What a command over the streaming server came to: the status that ends its connection (a Kubernetes Status)."""
    with closing(streams):
        status = json.loads(streams.read_all()[STATUS])
    if status["status"] == "Success":
        return 0
    causes = status.get("details", {}).get("causes", [])
    codes = [int(cause["message"]) for cause in causes if cause.get("reason") == "ExitCode"]
    assert codes, status
    return codes[0]
