# SPDX-License-Identifier: Apache-2.0
"""The agent inside the guest: serves the Kata agent's calls, and runs containers with `crun`.

    main        the process: settings, transports, the loop
    loop        epoll, timers, and tasks (generators that wait)
    children    starting and reaping processes
    ports       the virtio-serial port, or the vsock listener
    connection  bytes in and out of one transport, bounded
    server      frames to calls to answers; no bad message stops it
    methods     which function answers which call
    agent       everything the calls share
    containers, processes, launch, streams, bundle, cgroups, oom, submounts  the containers
    rpc_*       the calls, by area, imported when first needed
    netlink, links, routes, ps, mounts, files, jsonc, report                 tools of the calls

Starting Python and each import cost about ten times as much in an emulated guest as on the host. So this package needs
neither asyncio nor subprocess, logging, typing, enum, dataclasses, re, pathlib or threading, and it imports the bulk of
itself only after the first answer is on its way.
"""

VERSION = "0.1.0"
