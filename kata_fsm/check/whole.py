# SPDX-License-Identifier: Apache-2.0
"""Every item, in the order in which a sandbox would meet them."""

from __future__ import annotations

from kata_fsm.check import host, machine, past
from kata_fsm.check.item import Item
from kata_fsm.config.load import load
from kata_fsm.config.settings import Runtime, hypervisor_settings
from kata_fsm.effects.hypervisor.settings import HypervisorSettings, from_dict
from kata_fsm.errors import UsageError


def configuration(named: str | None) -> tuple[Item, HypervisorSettings, str]:
    """Whether the configuration can be; the machine and the network model that it asks for, or the built-in ones."""
    try:
        settings = load(named)
        asked = from_dict(hypervisor_settings(settings))
    except UsageError as error:
        item = Item(
            name="configuration",
            verdict="cannot",
            found=error.message,
            expected="a file that can be read, or none",
            fix=error.hint or "correct it; `kata-fsm config schema` and docs/configuration.md say what is legal",
        )
        return item, from_dict({}), Runtime().internetworking_model
    found = f"`{settings.origin}`" if settings.origin else "none, built-in defaults"
    if settings.drop_ins:
        found += f" and {len(settings.drop_ins)} drop-ins"
    if settings.warnings:
        found += f"; {len(settings.warnings)} warnings: {settings.warnings[0]}"
    verdict = "warning" if settings.warnings else "ok"
    item = Item(
        name="configuration",
        verdict=verdict,  # type: ignore[arg-type]
        found=found,
        expected="a file that can be read, or none",
        fix="`kata-fsm config show --origin` tells all of it",
        needed=True,
    )
    return item, asked, settings.runtime.internetworking_model


def examine(named: str | None) -> list[Item]:
    """Look at everything. Takes a few seconds as root, as a guest is run; leaves nothing behind."""
    first, settings, model = configuration(named)
    accel = settings.accel
    guest = machine.kvm_guest(settings)
    health = past.journal()
    used = "kvm" if guest.verdict == "ok" and accel != "tcg" else "tcg"
    return [
        first,
        host.user(),
        host.processor(accel),
        *host.modules(accel),
        host.device("/dev/kvm", accel, wanted=True),
        host.device("/dev/vhost-vsock", accel, wanted=False, without="not needed: the agent has a virtio-serial port"),
        host.tun(model),
        host.device("/dev/vhost-net", accel, wanted=False, without="without, QEMU moves the packets"),
        *machine.qemu(settings),
        machine.virtiofsd(settings),
        *machine.image(settings),
        guest,
        host.control_groups(),
        host.memory(settings, used),
        *host.disk(),
        host.socket_paths(),
        host.propagation(),
        health,
        *([past.leftovers()] if health.verdict == "ok" else []),
    ]
