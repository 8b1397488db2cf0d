"""Who made a release: an Ed25519 signature over the manifest's bytes, in a file beside it.

The manifest holds the checksum of every other file, so the one signature covers them all. A public key is its 32 bytes
in base64, short enough for a setting; the private key is a PEM file that only its owner may read.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from xplat_stream.errors import ReleaseError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def make_key(path: Path) -> str:
    """Write a new private key and return its public key. Raises `ReleaseError`: a key is never written over."""
    key = Ed25519PrivateKey.generate()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    except OSError as error:
        raise ReleaseError(
            f"the key cannot be written: {error.strerror}",
            where=str(path),
            expected="a file that is not there yet, in a folder this user may write",
            fix="Name another file; delete a key only when nobody trusts it any more.",
        ) from error
    return _public(key)


def public_key(path: Path) -> str:
    """Return the public key of a private one, as `release.trusted_keys` takes it. Raises `ReleaseError`."""
    return _public(_read_key(path))


def sign(path: Path, content: bytes) -> bytes:
    """Return the signature of some bytes by the private key in a file. Raises `ReleaseError`."""
    return base64.b64encode(_read_key(path).sign(content)) + b"\n"


def is_signed(content: bytes, signature: bytes, trusted: Iterable[str]) -> bool:
    """Tell whether one of the trusted public keys signed exactly these bytes."""
    for key in trusted:
        try:
            raw = base64.b64decode(signature.strip(), validate=True)
            Ed25519PublicKey.from_public_bytes(base64.b64decode(key)).verify(raw, content)
        except (InvalidSignature, ValueError):  # a file that is no base64 is no signature
            continue
        return True
    return False


def _public(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path, str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "it is a key of another kind")
    return key


def _no_key(path: Path, why: str) -> ReleaseError:
    return ReleaseError(
        f"the signing key cannot be read: {why}",
        where=str(path),
        expected="an Ed25519 private key in PEM, without a password",
        fix="Make one with `xplat model keygen`, or correct XPLAT_RELEASE__SIGNING_KEY.",
    )
