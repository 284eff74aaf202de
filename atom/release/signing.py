"""Sign a release with a key, and check the signature, by the package ``model-signing``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.io.files import copy, is_regular, read_bytes
from atom.release.bundle import SIGNATURE

PUBLIC = "release.pub"
"""The public key in a release. Whoever makes a release can put any key there: compare it."""


def _modules() -> tuple[Any, Any, Any]:
    try:
        from model_signing import hashing, signing, verifying
    except ImportError as error:
        raise UserError(
            f"signatures need the package model-signing ({error})",
            valid="pip install 'atom-train[release]'",
        ) from None
    return hashing, signing, verifying


def check(private: Path, public: Path | None) -> None:
    """Refuse keys that cannot be read, before anything is written."""
    _modules()
    for option, path in (("--key", private), ("--public-key", public)):
        if path is None:
            raise UserError("--key needs the public key, too", valid="--public-key FILE")
        try:
            read_bytes(path, most=1 << 16)
        except OSError as error:
            raise UserError(f"{option} {path} cannot be read: {error.strerror}") from None


def sign(folder: Path, private: Path, public: Path) -> None:
    """Write the signature of all files of a release.

    Raises:
        UserError: the key cannot be used.
    """
    hashing, signing, _ = _modules()
    copy(public.resolve(), folder / PUBLIC)
    folder = folder.resolve()
    signature = folder / SIGNATURE
    try:
        signing.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(
            hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
        ).sign(folder, signature)
    except (ValueError, TypeError) as error:
        raise UserError(f"--key {private}: {error}", valid="a key of an elliptic curve") from None


def verified(folder: Path, public: Path | None) -> tuple[str | None, str]:
    """Check the signature of a release.

    Args:
        folder: the release.
        public: the key to trust; None for the one in the release.

    Returns:
        What is wrong, or None; and words about the signature.
    """
    if not is_regular(folder / SIGNATURE):
        return ("it is not signed" if public is not None else None), "not signed"
    folder = folder.resolve()
    hashing, _, verifying = _modules()
    key = public or folder / PUBLIC
    try:
        digest = hashlib.sha256(read_bytes(key, most=1 << 16)).hexdigest()[:16]
    except OSError as error:
        return f"the public key {key.name} cannot be read: {error.strerror}", "unknown"
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(
            hashing.Config().set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)
        ).verify(folder, folder / SIGNATURE)
    except Exception as error:  # the package raises errors of several libraries
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return f"the signature is not valid: {reason}", "not valid"
    whose = "the key given" if public is not None else f"{PUBLIC} in the release, not given by you"
    return None, f"valid, by {whose} (sha256 of the file {digest}…)"
