# SPDX-License-Identifier: Apache-2.0
"""The agent's process once `init` has started it: prepares `crun`, then becomes the agent.

A plain file, because running a package by its name makes Python import a third of its library first.
"""

import os
import sys
from _frozen_importlib import ModuleSpec
from fcntl import fcntl
from marshal import loads

TYPE_CHECKING = False  # the name without the module, which would cost more than all of this file
if TYPE_CHECKING:
    from types import ModuleType

AGENT = "kata_agent.main"  # outside the guest there is no package of this name
CRUN = "/usr/libexec/crun"
CRUN_FD = 100  # /usr/bin/crun is a link to /proc/self/fd/100, which a child of ours has until its exec
F_ADD_SEALS = 1033
ALL_SEALS = 0xF  # seal, shrink, grow, write


def seal_crun() -> None:
    """Copies crun into a sealed memory file.

    crun protects its program file from the container by copying itself into such a file and starting over, unless it
    runs from one (libcrun/cloned_binary.c); from an initramfs it does so twice. Copying once here, in 5 ms, saves 65 ms
    of every run under emulation.
    """
    source = os.open(CRUN, os.O_RDONLY | os.O_CLOEXEC)
    sealed = os.memfd_create("crun", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    while data := os.read(source, 1 << 20):
        os.write(sealed, data)
    fcntl(sealed, F_ADD_SEALS, ALL_SEALS)
    os.close(source)
    # read-only, as one open for writing cannot be executed
    opened = os.open(f"/proc/self/fd/{sealed}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(sealed)
    os.dup2(opened, CRUN_FD, inheritable=False)
    os.close(opened)


def load_modules() -> None:
    """Starts loading the modules the agent can do without, only while nothing else wants the processor.

    What cannot wait is loaded by the kernel's own call of modprobe; that such a module is there already is no news for
    the console, which is evidence when a guest dies. The process is an orphan like any other, to be reaped.
    """
    script = 'while read -r module; do insmod "$module" 2>/dev/null; done </usr/lib/kata/modules-late'
    pid = os.posix_spawn("/usr/bin/sh", ["sh", "-c", script], os.environ)
    os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


class Bundle:
    """Imports our modules from one file; Python's search through directories takes three times as long."""

    def __init__(self, path: str) -> None:
        with open(path, "rb", 0) as file:
            self._modules: dict[str, tuple[bool, bytes]] = loads(file.read())

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """The import system's question: is it ours?"""
        found = self._modules.get(name)
        if found is None:
            return None
        return ModuleSpec(name, self, is_package=found[0])  # type: ignore[arg-type]  # a loader by what it can do

    def create_module(self, spec: "ModuleSpec") -> None:
        """An ordinary module."""

    def exec_module(self, module: "ModuleType") -> None:
        """Runs the module's code."""
        exec(loads(self._modules[module.__name__][1]), module.__dict__)


sys.meta_path.insert(0, Bundle("/usr/lib/kata/bundle"))
seal_crun()
load_modules()
__import__(AGENT)
sys.modules[AGENT].main()
