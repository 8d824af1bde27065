# SPDX-License-Identifier: Apache-2.0
"""The simulated world: a host and its guests in memory, in which everything can go wrong on purpose.

    dice      numbers from a seed, the only source of chance
    clock     a `World`: clocks that follow trio's, boots, uids
    faults    what is to go wrong and when; what has been seen to happen
    ledger    who holds what, and how often each thing was taken and given back
    host      processes, namespaces, mounts, cgroups, files
    guest     the agent in a virtual machine, and what really happened to each process in it
    link      how a supervisor reaches a guest
    handlers  the effects on the host; those in the guest are the real handlers over the link
    network   those on the network: namespace, taps, NICs
    wiring    all of them together, in the place of `kata_fsm.supervisor.wiring`

It is driven by `kata_fsm.testing`, under the clock in `clock.py`; nothing in it touches the real host.
"""
