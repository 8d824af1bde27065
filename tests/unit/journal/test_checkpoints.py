# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and their signatures: what they state, and what verify says of those that state something else."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from journal import ChainBroken, InvalidAppend, Journal, Stamp, keys, layout

ROOT = Path(__file__).resolve().parents[3]


def make_key(directory, name):
    """(path of a private key, path of its public key), made by openssl as its users would."""
    private, public = directory / f"{name}.pem", directory / f"{name}.pub.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    private.chmod(0o600)
    return str(private), str(public)


@pytest.fixture
def key(tmp_path):
    return make_key(tmp_path, "ours")


def found(journal, *public_keys):
    return [(finding.kind, finding.seq) for finding in journal.verify(public_keys=public_keys)]


def test_a_checkpoint_states_the_head_before_it(journal, put, stamp):
    with pytest.raises(InvalidAppend, match="no head to state"):
        journal.checkpoint(stamp=stamp)
    put(journal, "s", "one", "two")
    head = journal.head()
    record = journal.checkpoint(stamp=stamp)
    assert (record.seq, record.stream, record.kind, record.rev) == (3, layout.SYSTEM_STREAM, "checkpoint", 1)
    first = journal.get(1).digest
    assert record.data == {"journal": first, "seq": head.seq, "digest": head.digest, "signature": None}
    assert journal.identity() == first
    assert journal.last_checkpoint() == record
    put(journal, "s")
    assert journal.checkpoint(stamp=stamp).rev == 2
    assert journal.last_checkpoint().seq == 5
    assert list(journal.verify()) == []


def test_a_signed_one_holds_by_the_public_key_and_by_openssl(journal, put, stamp, key, tmp_path):
    put(journal, "s")
    record = journal.checkpoint(stamp=stamp, signer=keys.PrivateKey(key[0]))
    public = keys.read_public(key[1])
    assert found(journal) == found(journal, public) == []
    body = record.data
    said = f"hash-chained journal head 1\n{body['journal']}\n{body['seq']}\n{body['digest']}\n"
    (tmp_path / "said").write_text(said)
    (tmp_path / "signature").write_bytes(bytes.fromhex(body["signature"]["value"]))
    subprocess.run(
        [
            *["openssl", "pkeyutl", "-verify", "-pubin", "-rawin", "-inkey"],
            key[1],
            "-in",
            tmp_path / "said",
            "-sigfile",
            tmp_path / "signature",
        ],
        check=True,
        capture_output=True,
    )


def test_with_keys_given_every_checkpoint_must_be_signed_with_one(journal, put, stamp, key, tmp_path):
    other = make_key(tmp_path, "other")
    put(journal, "s")
    journal.checkpoint(stamp=stamp)
    journal.checkpoint(stamp=stamp, signer=keys.PrivateKey(other[0]))
    ours, theirs = keys.read_public(key[1]), keys.read_public(other[1])
    assert found(journal) == []
    assert found(journal, ours) == [("checkpoint", 2), ("checkpoint", 3)]
    assert found(journal, ours, theirs) == [("checkpoint", 2)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seq":1,"digest":"', b'"seq":1,"digest":"0'),
        (b'{"journal":"', b'{"journal":"0'),
        (b'"ed25519"', b'"rot13"'),
        (b'"value":"', b'"value":"00'),
        (b'"value":"', b'"value":"zz'),
        (b'"signature":{"algorithm"', b'"signature":{"algorism"'),
    ],
)
def test_one_that_states_something_else_is_found(journal, put, stamp, key, old, new):
    """Rewritten with its digest and its head, so that nothing but the checkpoint itself is wrong."""
    put(journal, "s")
    journal.checkpoint(stamp=stamp, signer=keys.PrivateKey(key[0]))
    text = journal.get_text(2)
    assert text.count(old) == 1
    text = text.replace(old, new)
    digest = hashlib.sha256(text).hexdigest().encode()
    with journal._env._env.begin(write=True) as txn:
        txn.put(layout.seq_key(2), digest + b" " + text, db=journal._env.tables.records)
        txn.put(layout.HEAD_KEY, b'{"seq":2,"digest":"%s","wall":[%d,%d]}' % (digest, *[stamp.wall_ns] * 2),
                db=journal._env.tables.meta)  # fmt: skip
    assert found(journal) == [("checkpoint", 2)]


def test_a_chain_computed_anew_is_consistent_but_lacks_the_signature(path, tmp_path, put, stamp, key):
    """What verify alone cannot see, a head kept elsewhere and a key do."""
    with Journal.open(path) as journal:
        put(journal, "s", "one", "two")
        journal.checkpoint(stamp=stamp, signer=keys.PrivateKey(key[0]))
        head = journal.head()
    with Journal.open(tmp_path / "anew") as forged:
        put(forged, "s", "one", "2")
        forged.checkpoint(stamp=stamp)
        assert found(forged) == []
        assert found(forged, keys.read_public(key[1])) == [("checkpoint", 3)]
        with pytest.raises(ChainBroken, match="was once"):
            forged.prove(head)


def test_keys_that_cannot_be_used_are_refused_in_one_line(tmp_path, key):
    unusable = keys.KeyUnusable
    rsa = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genrsa", "-out", rsa, "1024"], check=True, capture_output=True)
    (tmp_path / "text").write_text("no key\n")
    for path, said in [
        (tmp_path / "none", "cannot be read: No such file"),
        (tmp_path / "text", "holds no private Ed25519 key"),
        (rsa, "another kind"),
    ]:
        if path.exists():
            path.chmod(0o600)
        with pytest.raises(unusable, match=said) as caught:
            keys.PrivateKey(str(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(unusable, match="holds no public Ed25519 key"):
        keys.read_public(key[0])
    Path(key[0]).chmod(0o640)
    with pytest.raises(unusable, match="can be read by others"):
        keys.PrivateKey(key[0])


def test_who_signs_nothing_does_not_import_the_library(path):
    code = (
        "import sys; from journal import Journal, NewRecord, Stamp\n"
        "with Journal.open(sys.argv[1]) as j:\n"
        "    j.append('s', [NewRecord('event', 't', {})], stamp=Stamp(1, 1, 'b'), expected_rev=0)\n"
        "    j.checkpoint(stamp=Stamp(1, 1, 'b')); assert not list(j.verify())\n"
        "assert not [name for name in sys.modules if name.startswith('cryptography')]"
    )
    subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, check=True)


def test_a_cut_chain_is_no_continuation(journal, put, stamp):
    put(journal, "s")
    later = Stamp(stamp.wall_ns, stamp.mono_ns, stamp.boot_id)
    head = journal.checkpoint(stamp=later)
    with pytest.raises(ChainBroken, match="ends with record `2`, but its head was once record `3`"):
        journal.prove(type(journal.head())(3, head.digest))
