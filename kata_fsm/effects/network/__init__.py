# SPDX-License-Identifier: Apache-2.0
"""The pod's network: what a namespace holds, joined to the VM, and told to the guest.

model      what is found, plugged and told, as recorded        scan       reading a namespace
tap        taps and macvtaps, and the descriptors QEMU gets    join       tc redirects between an interface and its tap
nics       the guest's side: devices over QMP, agent calls     handlers   the effects `network.*`
"""
