# SPDX-License-Identifier: Apache-2.0
"""Every limit of the host side, unit last, with its reason. Imports nothing (hot path)."""

# Ids. runc takes any length; an id becomes part of a log line, a key (LMDB: 511 bytes) and a process title.
CONTAINER_ID_BYTES_MAX = 200

# `config.json`. The largest seen from an engine is 60 KB (a full seccomp profile). Its annotations must fit into a record
# of the journal (1 MiB), and all of it, escaped and once more as a message, into a frame to the agent (4 MiB).
SPEC_BYTES_MAX = 768 << 10
# How deep its JSON may be nested. The deepest that the specification knows is 7; readers in the guest are recursive.
SPEC_DEPTH_MAX = 64

# One frame between a verb or shim and the supervisor.
CONTROL_FRAME_BYTES_MAX = 6 << 20
SUPERVISOR_START_S = 20.0
SHIM_ATTACH_S = 20.0
EXEC_ID_CHARS_MAX = 32
SHIM_RECONNECT_S = 60.0
# A shim that lost its supervisor tries again within a second (0.05 s at first). The last supervisor of a sandbox waits
# this long for those that have not come yet.
SHIM_COMES_S = 3.0
# Whoever else finds that there is no supervisor leaves it to them for so long to start one.
SHIM_STARTS_S = 2.0
VERB_REPLY_S = 180.0
# A supervisor answers a ping within milliseconds; `delete --force` takes one that needs this long for dead.
SUPERVISOR_SILENT_S = 20.0

# Kata's own limits: 10 s to boot on hardware, 60 s for an agent call. Under TCG on a loaded host a boot takes several
# times as long, so the limits below are for telling "dead" from "slow", not for meeting a goal.
BOOT_TIMEOUT_S = 60.0
AGENT_CALL_TIMEOUT_S = 60.0
CREATE_TIMEOUT_S_MAX = 120  # the verb that waits for it gives up after `VERB_REPLY_S`, and the guest boots first
AGENT_PING_TIMEOUT_S = 10.0
QMP_CONNECT_TIMEOUT_S = 20.0
QMP_COMMAND_TIMEOUT_S = 10.0
VM_STOP_GRACE_S = 3.0
PROCESS_KILL_WAIT_S = 5.0
HOOK_TIMEOUT_S = 120  # of a hook that names none: nobody could be sure of deleting a container whose hook hangs
PROCESS_EXEC_S = (
    0.2  # the kernel puts a new program's arguments in place within microseconds, unless it is not scheduled
)
KVM_PROBE_S = 6.0

# Output pumping: one read from the guest. Large reads carry 70 to 130 MB/s through a virtio-serial port, 4 KB ones 10.
STREAM_READ_BYTES = 3 << 20
# Whoever gets so much at once is asked for more before it has been handed over: guest and host then work side by side.
STREAM_AHEAD_BYTES = 1 << 20
STREAM_POLL_S = 5.0
STDIN_BYTES = 256 << 10

# Bounded tails kept as evidence.
CONSOLE_TAIL_BYTES = 8 << 10
STDERR_TAIL_BYTES = 4 << 10
CONSOLE_LOG_BYTES_MAX = 4 << 20

# The coupling table must reach its fixed point; a pod of C containers needs a few steps per container.
COUPLING_ROUNDS_MAX = 10_000

JOURNAL_LOCK_S = 10.0
# What has happened must be recorded: a journal that is busy or full is tried again, about this often.
JOURNAL_RETRY_S = 0.5
# After a failure that may be none, only the answer lost: how long it is looked whether it was done. The call itself has
# waited long enough; a guest that lives answers this within milliseconds.
LOOK_AGAIN_S = 10.0
LOOK_EVERY_S = 3.0  # one that was lost is not waited for all that time
# Of a failure that cannot be recorded as it is (a record holds 1 MiB), this much.
OUTCOME_MESSAGE_CHARS_MAX = 4096

# A supervisor that takes over folds at most about so many records: 200 fold in 2 ms, and a snapshot costs one page more.
SNAPSHOT_RECORDS = 200
SNAPSHOT_BYTES_MAX = 8 << 20

# Watching. The agent is asked whether it lives; a busy TCG guest may take seconds to answer.
AGENT_WATCH_EVERY_S = 10.0
AGENT_WATCH_ANSWER_S = 30.0
RETRY_S = 0.2
# How long after virtiofsd's end the end of its VM may be noticed and still count as the reason.
VM_DEATH_NOTICE_S = 1.0

# A supervisor whose sandbox has ended waits a little for `delete`, then leaves: whoever deletes later starts another.
SUPERVISOR_LINGER_S = 20.0
SUPERVISOR_IDLE_S = 20.0
# `delete` waits this long for a container's output to be read by whoever gave its descriptors.
UNREAD_OUTPUT_S = 30.0
# Readers take a supervisor's lock for an instant, to see whether it is free; a new supervisor outlasts that.
LOCK_POLL_S = 0.01

# A supervisor that fails in a way of its own is followed by another, which goes on from the journal. One that has failed
# so often within so long would fail again: the next takes its sandbox down.
SUPERVISOR_FAILURES_MAX = 3
SUPERVISOR_FAILURES_S = 600.0
SUPERVISOR_FAILURE_RECORDS = 1000  # how far back they are looked for

# Host cgroups: how long a process that must leave one is waited for, and how often a vanished parent is made again.
CGROUP_EMPTY_S = 2.0
CGROUP_POLL_S = 0.01
CGROUP_RETRIES = 5
SYSTEMD_REPLY_S = 10.0  # for systemd's answer when it is asked for a scope

# What a pod's limits on the host leave its machine beside what the containers were given (`oci.hosting`). The kernel counts
# processor time in each period. What QEMU's other threads, virtiofsd, the supervisor and shims take grows with what a
# workload asks for: up to 0.38 of what its processors take (measured under TCG: files and output as fast as they go), so
# half. One processor more is for what does not depend on it: the guest's kernel, its boot, its agent. Without this they
# would be stopped for what the workload has used.
HOST_CPU_PERIOD_US = 100_000
HOST_CPU_ROOM_US = 100_000
HOST_CPU_ROOM_PART = 2
# Memory: a fixed part (the setting `host_memory_overhead`; measured under TCG, at work: QEMU 170 MiB, most of it translated
# code, which is bounded by 128, supervisor 40, virtiofsd and a shim 10, and 5 for each further exec). Then what grows with
# the guest's: page tables in QEMU and virtiofsd and the kernel's index of it, 0.7 % together; and what the kernel keeps of
# the files that virtiofsd holds open because the guest remembers them. A file takes 1 KiB of the guest's memory and up to
# 2.4 of the host's (measured: 1.5 on ext4, 2.4 on overlayfs), and virtiofsd opens a million at most.
HOST_MEMORY_OVERHEAD_MIB = 512
HOST_MEMORY_TABLES_PART = 64
HOST_MEMORY_FILES_TIMES = 2.5
HOST_MEMORY_FILES_MIB_MAX = 2560

# A mount, an unmount or a look at a file takes milliseconds, or waits for a server that is gone and never ends.
HOST_CALL_S = 30.0

# Starting QEMU: from exec to its monitor's greeting takes 0.1 to 0.2 s; a host that swaps may take much longer.
QEMU_START_S = 20.0
# And longer where it first takes all of the guest's memory: at 2 GB/s where nothing else happens, at a tenth on a busy host.
PREALLOC_MIB_PER_S = 200
QMP_RETRY_S = 0.01

# What a guest needs at least to come up: kernel, initrd and agent (measured: it panics below), and what QEMU itself
# takes beside it (measured PSS; under TCG mostly translation buffers).
GUEST_MEMORY_MIB_MIN = 128
GUEST_MEMORY_MIB_MAX = 1 << 24
GUEST_RESIDENT_MIB = 192
QEMU_OVERHEAD_KVM_MIB = 64
QEMU_OVERHEAD_TCG_MIB = 160
VCPUS_MAX = 255
ROOT_PORTS_MAX = 32

# Run and log directories must have this much left, or a sandbox could not even say what went wrong.
FREE_SPACE_BYTES_MIN = 8 << 20

# Logs of QEMU, its console and virtiofsd are looked at this often. An emulated serial port moves about 1 MB/s, so a log
# outgrows its limit by a few seconds of that.
LOG_CHECK_S = 5.0
QMP_EVENTS_MAX = 64

# A guest lets go of a device in 40 ms; one that never does must not hold up the others.
UNPLUG_S = 12.0  # of a root port without ACPI (microvm) the kernel waits 5 s for somebody to press its button again
MACHINE_ENDS_S = 2.0  # between QEMU's last answer and its end

# Between QEMU's death and the end of what it had sent there are microseconds; this only bounds a wait that must not hang.
QEMU_LAST_WORDS_S = 1.0
QMP_RECONNECT_S = 1.0

# A limit of a NIC's rate: the kernel counts bytes per second in 32 bits, and how long a burst takes in others.
RATE_BITS_PER_S_MIN = 8000
RATE_BITS_PER_S_MAX = (2**32 - 1) * 8
# What may pass at once after silence (a fast rate needs some, as the kernel looks in intervals), and what may wait: a
# guest's segments are up to 64 KiB. Less makes TCP slower than the limit, more makes everybody wait.
RATE_BURST_S = 0.02
RATE_BURST_BYTES_MIN = 32 << 10
RATE_WAIT_S = 0.1
RATE_WAIT_BYTES_MIN = 96 << 10

# A namespace's routes and neighbours are recorded with its sandbox: a record holds 1 MiB, an entry some 150 bytes.
NETWORK_ENTRIES_MAX = 1024

# Names on Docker's networks. dockerd answers what it knows within milliseconds; who hears nothing asks again after 5 s
# (resolv.conf(5)).
NAME_SILENCE_S = 1.0
NAME_ANSWER_S = 2.0
NAME_QUESTIONS_MAX = 32  # asked at once for one sandbox

# Watching a namespace's network. An engine sets up an interface by a dozen changes within milliseconds.
NETWORK_QUIET_S = 0.3  # after the last of them
NETWORK_UNQUIET_S = 3.0  # one that never comes to rest is looked at this often
NETWORK_PAUSE_S = 2.0  # from one change of the guest's network to the next: each is recorded

# Connections to `localhost` in the pod's namespace that are forwarded to the guest. Each holds a few descriptors here and up
# to 0.5 MiB in the guest; a browser opens six. Who comes while so many are open tries again by himself, a second later.
FORWARDED_MAX = 64
FORWARD_DIAL_S = 10.0  # in the guest to itself: refused at once, or a server that is too busy to accept
FORWARD_ACCEPT_S = 5.0  # a client that was let in completes its connection within microseconds, if it is still there
FORWARD_LEFT_S = 1.0  # the time for a packet to get from one socket of the host's to another; it takes microseconds
FORWARD_SEEN_MAX = 256  # first packets that are remembered: one that is sent again comes within seconds
FORWARD_TOLD_MAX = 200  # lines in the supervisor's log about one pod's

# Lines to the host's log by one process: a supervisor whose guest misbehaves must not fill it.
SYSTEM_LOG_LINES_MAX = 200
SYSTEM_LOG_WINDOW_S = 30.0

# Recovery by hand. A look at one thing is short, or it is said that it cannot be told; a busy supervisor answers a ping
# within milliseconds.
PROBE_S = 3.0
SUPERVISOR_PING_S = 3.0
# One sandbox's recovery: a boot that was under way, plus its tear-down by force. What has not come to rest by then is
# reported, and goes on by itself.
RECOVER_SETTLE_S = 90.0
RECOVER_ONE_S = 150.0
RECOVER_SIDE_BY_SIDE = 4  # each starts an interpreter
# A clean-up that fails is tried again this often, this far apart, before it is reported as stuck.
RECOVER_ATTEMPTS = 3
RECOVER_RETRY_S = 1.0
# A sandbox's directory stands for an instant before its supervisor does.
ORPHAN_DIRECTORY_AGE_S = 10.0
ORPHAN_UNMOUNT_S = 10.0  # unmounting a file system whose server is gone never ends
# Lines of the kernel's log about one process that are kept as evidence.
KERNEL_LOG_LINES_MAX = 5
