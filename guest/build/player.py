# SPDX-License-Identifier: Apache-2.0
"""A program that makes a fixed list of system calls: as an init, thirteen starts of busybox faster than a shell script.

It is an ELF file of 200 bytes of code and a table. The code makes the calls of the table one after the other; the last is
one that does not come back (`execve`, `exit`). If a call fails, it writes that call's message to standard error and exits
with the error number, which the kernel repeats in its panic (`exitcode=0x00001300` is 0x13, ENODEV).

A list may also be made by a child (`Child`): the program forks, reaps whatever becomes its child until that one has ended,
writes how (the wait status, as four hexadecimal digits behind the message), and goes on with the calls that follow.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

BASE = 0x400000  # where the file is mapped; anything below 2 GiB, as the code has 32 bits for the table's address
ROW = struct.Struct("<8Q")  # number, five arguments, message, message length
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
ET_EXEC, EM_X86_64, PT_LOAD, READ_EXECUTE, PAGE = 2, 62, 1, 5, 0x1000
ARGUMENTS_MAX = 5  # mount(2) has the most
FORK = 57  # x86-64

Argument = (
    int | str | tuple[str, ...]
)  # a str becomes a pointer to a C string, a tuple one to a NULL-ended array of them

CODE = bytes.fromhex(
    "bb 00000000"  # mov ebx, TABLE
    "48 8b 03"  # next: mov rax, [rbx]
    "48 8b 7b 08"  # mov rdi, [rbx+8]
    "48 8b 73 10"  # mov rsi, [rbx+16]
    "48 8b 53 18"  # mov rdx, [rbx+24]
    "4c 8b 53 20"  # mov r10, [rbx+32]
    "4c 8b 43 28"  # mov r8, [rbx+40]
    "0f 05"  # syscall
    "48 85 c0"  # test rax, rax
    "78 7d"  # js failed
    "74 05"  # jz done (also the child's side of a fork)
    "83 3b 39"  # cmp dword [rbx], 57 (fork)
    "74 06"  # je parent
    "48 83 c3 40"  # done: add rbx, 64
    "eb d5"  # jmp next
    "41 89 c4"  # parent: mov r12d, eax
    "83 cf ff"  # wait: or edi, -1
    "48 8d 74 24 f8"  # lea rsi, [rsp-8]
    "31 d2"  # xor edx, edx
    "45 31 d2"  # xor r10d, r10d
    "b8 3d 00 00 00"  # mov eax, 61 (wait4)
    "0f 05"  # syscall
    "44 39 e0"  # cmp eax, r12d
    "75 e7"  # jne wait
    "44 8b 64 24 f8"  # mov r12d, [rsp-8]
    "48 8b 73 10"  # mov rsi, [rbx+16]
    "48 8b 53 18"  # mov rdx, [rbx+24]
    "bf 02 00 00 00"  # mov edi, 2
    "b8 01 00 00 00"  # mov eax, 1 (write)
    "0f 05"  # syscall
    "48 8d 74 24 f8"  # lea rsi, [rsp-8]
    "c6 06 0a"  # mov byte [rsi], '\n'
    "ba 01 00 00 00"  # mov edx, 1
    "44 89 e0"  # digit: mov eax, r12d
    "83 e0 0f"  # and eax, 15
    "3c 0a"  # cmp al, 10
    "72 02"  # jb small
    "04 27"  # add al, 'a' - '0' - 10
    "04 30"  # small: add al, '0'
    "48 ff ce"  # dec rsi
    "88 06"  # mov [rsi], al
    "ff c2"  # inc edx
    "41 c1 ec 04"  # shr r12d, 4
    "83 fa 05"  # cmp edx, 5
    "72 e2"  # jb digit
    "b8 01 00 00 00"  # mov eax, 1 (write)
    "0f 05"  # syscall
    "48 8b 5b 08"  # mov rbx, [rbx+8]
    "e9 65 ff ff ff"  # jmp next
    "41 89 c4"  # failed: mov r12d, eax
    "48 8b 73 30"  # mov rsi, [rbx+48]
    "48 8b 53 38"  # mov rdx, [rbx+56]
    "bf 02 00 00 00"  # mov edi, 2
    "b8 01 00 00 00"  # mov eax, 1 (write)
    "0f 05"  # syscall
    "44 89 e7"  # mov edi, r12d
    "f7 df"  # neg edi
    "b8 3c 00 00 00"  # mov eax, 60 (exit)
    "0f 05"  # syscall
)
TABLE_ADDRESS_AT = 1  # where TABLE stands in the code


@dataclass(frozen=True)
class Call:
    """One system call: its x86-64 number, its arguments, and what it is for, in the words of a message."""

    number: int
    arguments: tuple[Argument, ...]
    purpose: str


@dataclass(frozen=True)
class Child:
    """Calls that a child makes; the last must not return. `epitaph` is written when it has ended, before its wait status."""

    calls: tuple[Call, ...]
    purpose: str
    epitaph: str


class _Data:
    """Strings and arrays behind the table, each string once."""

    def __init__(self, address: int) -> None:
        self._address = address
        self._strings: dict[bytes, int] = {}
        self.bytes = bytearray()

    def string(self, text: str) -> int:
        """The address of `text`, NUL-ended."""
        raw = text.encode() + b"\0"
        if raw not in self._strings:
            self._strings[raw] = self._address + len(self.bytes)
            self.bytes += raw
        return self._strings[raw]

    def argument(self, value: Argument) -> int:
        """A call's argument as the number that goes into the register."""
        if isinstance(value, int):
            return value
        if isinstance(value, str):
            return self.string(value)
        pointers = [self.string(text) for text in value]
        self.bytes += bytes(-len(self.bytes) % 8)
        address = self._address + len(self.bytes)
        self.bytes += struct.pack(f"<{len(pointers) + 1}Q", *pointers, 0)
        return address


def program(steps: Sequence[Call | Child]) -> bytes:
    """The ELF file that makes `steps`; the last of them must be a call that does not return."""
    start = EHDR.size + PHDR.size
    table = start + len(CODE)
    table += -table % 8
    count = sum(1 + len(step.calls) if isinstance(step, Child) else 1 for step in steps)
    data = _Data(BASE + table + count * ROW.size)
    rows = b""
    for step in steps:
        if isinstance(step, Child):
            behind = BASE + table + len(rows) + (1 + len(step.calls)) * ROW.size
            # The kernel asks for no arguments here: they are the parent's, where it goes on and what it says before.
            rows += _row(Call(FORK, (behind, step.epitaph, len(step.epitaph.encode())), step.purpose), data)
            rows += b"".join(_row(call, data) for call in step.calls)
        else:
            rows += _row(step, data)
    code = CODE[:TABLE_ADDRESS_AT] + struct.pack("<I", BASE + table) + CODE[TABLE_ADDRESS_AT + 4 :]
    body = code + bytes(table - start - len(code)) + rows + data.bytes
    size = start + len(body)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = EHDR.pack(ident, ET_EXEC, EM_X86_64, 1, BASE + start, EHDR.size, 0, 0, EHDR.size, PHDR.size, 1, 0, 0, 0)
    return header + PHDR.pack(PT_LOAD, READ_EXECUTE, 0, BASE, BASE, size, size, PAGE) + body


def _row(call: Call, data: _Data) -> bytes:
    values = [data.argument(value) for value in call.arguments]
    values += [0] * (ARGUMENTS_MAX - len(values))
    message = f"init: cannot {call.purpose}\n"
    return ROW.pack(call.number, *values, data.string(message), len(message.encode()))
