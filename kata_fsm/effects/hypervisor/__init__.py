# SPDX-License-Identifier: Apache-2.0
"""The hypervisor: QEMU, one process per sandbox.

settings   what may be configured, checked
image      the guest image's kernel, initrd and kernel parameters
argv       QEMU's command line; pure
kvm        does a guest really run on KVM here? asked once per boot
qmp        qemu.qmp (asyncio) for trio
handler    the effects `hypervisor.launch` and `hypervisor.stop`
watch      what a dead QEMU leaves behind, read as a cause
hotplug    devices that come after the boot
"""
