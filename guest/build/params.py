# SPDX-License-Identifier: Apache-2.0
"""The kernel command line and the processor, in one place; the host reads them from the manifest."""

# right everywhere
COMMON = (
    "console=ttyS0",
    "quiet",
    "panic=-1",  # a panic ends the machine at once (QEMU runs with -no-reboot), instead of leaving a dead guest
    "oops=panic",  # what a kernel that has lost a process in the middle of its work says afterwards is not to be trusted
    "cryptomgr.notests",  # no self tests of ciphers nobody uses: 0.4 s under emulation
    "random.trust_cpu=on",  # Python needs random numbers for its hash seed before there is other entropy
)
# right only where an emulator plays the processor, or too weak for a guest whose kernel guards something
TCG = (
    "no_timer_check",  # the emulated timer is known to work
    "tsc=reliable",  # emulated: derived from one host clock, so the watchdog has nothing to find
    "nolapic_timer",  # saves its calibration; the emulated PIT does
    "noreplace-smp",  # saves patching lock prefixes out, and in again when a processor is plugged
    "init_on_alloc=0",
    "rodata=off",
    "mitigations=off",  # an emulated processor does not speculate, and every entry to the kernel pays for them
)
KVM: tuple[str, ...] = ()

# For emulation. `la57=off`: no five-level page tables to walk. `erms=off`: the kernel and libc then move and clear memory
# eight bytes at a time; the emulator does their `rep movsb` and `rep stosb` byte by byte. That is 0.15 s of a boot, and
# much of what containers do later.
TCG_CPU = "max,la57=off,erms=off"


def manifest() -> dict[str, list[str]]:
    """The three lists. A command line is `common` followed by those of the accelerator in use."""
    return {"common": list(COMMON), "tcg": list(TCG), "kvm": list(KVM)}
