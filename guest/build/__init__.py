# SPDX-License-Identifier: Apache-2.0
"""Builds the guest image: `vmlinux`, `initrd` and `manifest.json`, from Debian packages and our own files.

    packages   what apt offers, downloaded into a work directory and unpacked there (nothing is installed)
    elf        the few ELF facts needed: shared libraries, module metadata, the PVH entry point
    kernel     the ELF kernel inside Debian's compressed bzImage
    modules    kernel modules with their dependencies, stripped, and the tables `modprobe` reads
    stdlib     the part of Python's standard library that the agent imports
    pyc        compiles Python with the guest's own interpreter, so that the host's version does not matter
    tree       the guest's file tree, in memory
    rootfs     what goes into that tree
    cpio       the tree as an initramfs, byte for byte the same every time
    params     the kernel command line
    init       the first process, as a list of system calls; player makes it a program
    image      inputs, digests, and the atomic exchange of the output directory

Same inputs give the same bytes: names are sorted, times are zero, owners are root, modes are normalised, code is
compiled under a fixed hash seed. The inputs are the package files, our own files and the version of `strip`.
"""
