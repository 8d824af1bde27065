# SPDX-License-Identifier: Apache-2.0
"""The only code that touches the host or the guest: one handler per kind of effect, behind `protocols.Handler`.

hypervisor/  QEMU        agent/    the guest's agent     share    virtiofsd and its tree     storage  binds and cgroups
netns        namespaces  network/  taps and NICs         cgroup   host cgroups     process  starting, watching, ending
mounts tree logs         what the others stand on
"""
