# SPDX-License-Identifier: Apache-2.0
"""What verification finds, by kind."""

import msgspec

KINDS = (
    *("structure", "modified", "missing", "reordered", "index", "chain", "head", "codec"),
    *("gap", "checkpoint", "time", "snapshot", "projection"),
)


class Finding(msgspec.Struct, frozen=True):
    """Something wrong. `kind` is one of `KINDS`; `seq` the record concerned (the first one of several), 0 for none.

    structure: the file is no sound LMDB environment, and nothing else was looked at.
    modified: text and stored digest differ. missing: no record where one must be. reordered: a record of another seq.
    chain: `prev` is not the digest before. index: the stream index and the records disagree. head: the kept head is
    not the last record. codec: bytes that cannot be read as a record at all. gap: records were taken out, and the
    tombstones do not account for just those. checkpoint: it does not state what is there, or its signature does not
    hold. time: the time index is wrong. snapshot, projection: not what the records fold to (`verify_folds`).
    """

    kind: str
    seq: int
    detail: str
