# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: the journal states its own head, signed if a key is given.

A checkpoint is a record of the journal's own stream. Its body names the journal (`journal`, the digest of record 1) and
the record before it (`seq`, `digest`); `signature` is null, or says the algorithm (`ed25519`), the public key and the
signature, in hex, of the statement below. Whoever keeps the public key elsewhere can tell a checkpoint that was made with
the private one from any that was not: a chain that was computed anew from some record on has none.
"""

from typing import Any, Protocol

import msgspec

from journal import layout
from journal.errors import ChainBroken, InvalidAppend
from journal.records import Head, Kind, NewRecord, Record

TYPE = "journal.checkpoint"
ALGORITHM = "ed25519"


class Signer(Protocol):
    """A private key. `public` is the raw public key, 32 bytes."""

    @property
    def public(self) -> bytes: ...

    def sign(self, statement: bytes) -> bytes: ...


class Signature(msgspec.Struct, frozen=True):
    """Of a statement; `key` and `value` are hex."""

    algorithm: str
    key: str
    value: str


class Checkpoint(msgspec.Struct, frozen=True):
    """The body of a checkpoint."""

    journal: str
    seq: int
    digest: str
    signature: Signature | None = None

    @property
    def head(self) -> Head:
        return Head(self.seq, self.digest)


def statement(journal: str, head: Head) -> bytes:
    """What is signed: four lines."""
    return f"hash-chained journal head 1\n{journal}\n{head.seq}\n{head.digest}\n".encode()


def new_record(journal: str, head: Head, signer: Signer | None) -> NewRecord:
    """The record that states `head`. Raises InvalidAppend for a journal without records."""
    if not head.seq:
        raise InvalidAppend("a journal without records has no head to state")
    signature = None
    if signer is not None:
        signature = Signature(ALGORITHM, signer.public.hex(), signer.sign(statement(journal, head)).hex())
    body: dict[str, Any] = msgspec.to_builtins(Checkpoint(journal, head.seq, head.digest, signature))
    return NewRecord(Kind.CHECKPOINT, TYPE, body)


def read(record: Record) -> Checkpoint | None:
    """The checkpoint that a record is; None when it is none. Raises msgspec.ValidationError when it is a broken one."""
    if record.stream != layout.SYSTEM_STREAM or record.kind != Kind.CHECKPOINT:
        return None
    return msgspec.json.decode(record.body, type=Checkpoint)


def fault(record: Record, journal: str | None, public_keys: frozenset[bytes]) -> str | None:
    """What is wrong with a checkpoint, or None; also None for any other record.

    With `public_keys` (raw, 32 bytes each) it must be signed by one of them. `journal` None: not compared.
    """
    try:
        checkpoint = read(record)
    except (msgspec.MsgspecError, ValueError) as error:
        return f"the checkpoint cannot be decoded: {error}"
    if checkpoint is None:
        return None
    if checkpoint.head != Head(record.seq - 1, record.prev):
        return f"the checkpoint states record `{checkpoint.seq}`, `{checkpoint.digest}`, which is not before it"
    if journal is not None and checkpoint.journal != journal:
        return f"the checkpoint is of journal `{checkpoint.journal}`"
    signature = checkpoint.signature
    if signature is None:
        return "the checkpoint is not signed" if public_keys else None
    return _signature_fault(signature, statement(checkpoint.journal, checkpoint.head), public_keys)


def _signature_fault(signature: Signature, said: bytes, public_keys: frozenset[bytes]) -> str | None:
    if signature.algorithm != ALGORITHM:
        return f"the checkpoint is signed by algorithm `{signature.algorithm}`, which this program does not know"
    try:
        public, value = bytes.fromhex(signature.key), bytes.fromhex(signature.value)
    except ValueError:
        return "the checkpoint's signature is no hex"
    if public_keys and public not in public_keys:
        return f"the checkpoint is signed with key `{signature.key}`, which is none of those given"
    from journal import keys

    try:
        keys.verify(public, value, said)
    except ChainBroken as error:
        return error.message
    return None
