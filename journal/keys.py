# SPDX-License-Identifier: Apache-2.0
"""Ed25519 keys in PEM files, as `openssl genpkey -algorithm ed25519` makes them. Imports `cryptography` when called."""

import os
import stat

from journal.errors import ChainBroken, JournalError

KEY_FILE_BYTES_MAX = 64 << 10


class KeyUnusable(JournalError):
    """A key file that cannot be read, or holds no key of the kind that is needed."""

    exit_code = 2


class PrivateKey:
    """A key to sign with. `public` is the raw public key, 32 bytes."""

    def __init__(self, path: str) -> None:
        """Raises KeyUnusable."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        pem = _read(path, secret=True)
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except Exception as error:  # it has ValueError, TypeError and errors of its own
            raise _unusable(path, "private", error) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise _unusable(path, "private", None)
        self._key = key
        self.public: bytes = key.public_key().public_bytes_raw()

    def sign(self, statement: bytes) -> bytes:
        """The signature, 64 bytes."""
        return self._key.sign(statement)


def read_public(path: str) -> bytes:
    """The raw public key, 32 bytes, of a PEM file. Raises KeyUnusable."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    pem = _read(path, secret=False)
    try:
        key = serialization.load_pem_public_key(pem)
    except Exception as error:  # as above
        raise _unusable(path, "public", error) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _unusable(path, "public", None)
    return key.public_bytes_raw()


def verify(public: bytes, signature: bytes, statement: bytes) -> None:
    """Raises ChainBroken unless `signature` is that of `statement`, made with the private key of `public`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, statement)
    except (InvalidSignature, ValueError) as error:
        raise ChainBroken(f"the signature with key `{public.hex()}` does not hold") from error


def _read(path: str, *, secret: bool) -> bytes:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if secret and stat.S_ISREG(mode) and mode & 0o077:
                raise KeyUnusable(
                    f"private key `{path}` can be read by others than its owner", hint=f"run `chmod 600 {path}`"
                )
            return file.read(KEY_FILE_BYTES_MAX)
    except OSError as error:
        raise KeyUnusable(f"key `{path}` cannot be read: {error.strerror}") from error


def _unusable(path: str, what: str, error: Exception | None) -> KeyUnusable:
    reason = "it is a key of another kind" if error is None else str(error).partition("\n")[0][:200]
    return KeyUnusable(
        f"`{path}` holds no {what} Ed25519 key in PEM form: {reason}",
        hint="`openssl genpkey -algorithm ed25519 -out KEY`, and `openssl pkey -in KEY -pubout`, make them",
    )
