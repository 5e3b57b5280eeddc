"""Signatures of packages and of what lies beside them in a repository, made and checked by OpenSSF model-signing.

A signature is a file, `model.sig`, in the folder that it is for: it holds the digests of every other file there. That
of a repository's root covers the index, which holds the digest of every package's manifest; so what `pull` fetches of
a repository can be verified without the rest of it. What must not live here: which folders are signed, and when.

With a key everything happens on this machine. Keyless, a CI job's identity is exchanged for a certificate that is valid
for minutes, and the signature is noted in a log with it (sigstore; https://docs.sigstore.dev/about/security): that
needs the network, and so does who verifies it, for the keys of that sigstore.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import EdgewrightError, GateFailed, MissingTool
from artifacts.documents import read_bytes
from artifacts.manifest import SIGNATURE
from edgewright.hub.wire import tame

_MAX_SIGNATURE_BYTES = 16 << 20
_MAX_KEY_BYTES = 1 << 16
_MAX_TRUST_BYTES = 1 << 20
PRODUCTION, STAGING = "production", "staging"  # the public sigstore, whose log is for good, and the one for trials


@dataclass(frozen=True)
class Signer:
    """key: file of an elliptic-curve private key in PEM; None: the identity of the CI job that this runs in.

    sigstore: who certifies that identity: PRODUCTION, STAGING, or the file of a client trust configuration.
    """

    key: Path | None
    sigstore: str | Path = PRODUCTION

    def sign(self, folder: Path) -> bytes:
        """The signature of a folder's files. Raises EdgewrightError, and MissingTool without model-signing."""
        config = _library("signing").Config().set_hashing_config(_hashing(folder))
        with _explained(folder), tempfile.TemporaryDirectory() as scratch:
            if self.key is None:
                token = _identity()
                with _sigstore(self.sigstore) as chosen:
                    config.use_sigstore_signer(identity_token=token, **chosen)
            else:
                with _key(self.key, "--sign-key"):
                    config.use_elliptic_key_signer(private_key=self.key)
            made = Path(scratch) / SIGNATURE
            config.sign(folder, made)
            return made.read_bytes()

    def renewed(self, folder: Path, earlier: bytes | None) -> bytes:
        """The earlier signature where it is this key's and holds, so that what is unchanged stays so; else a new one.

        Keyless ones name the job that made them, and are always new.
        """
        if self.key is not None and earlier is not None:
            with tempfile.NamedTemporaryFile(suffix=".pub") as public:
                public.write(_public(self.key))
                public.flush()
                try:
                    Trusted(key=Path(public.name)).check(folder, earlier, str(folder))
                except GateFailed:
                    return self.sign(folder)
                return earlier
        return self.sign(folder)


@dataclass(frozen=True)
class Trusted:
    """Whose signature counts: that of the private key to `key`, a public one in PEM, or of `identity` by `issuer`.

    sigstore: who certified the identity, as in `Signer`.
    """

    key: Path | None = None
    identity: str | None = None
    issuer: str | None = None
    sigstore: str | Path = PRODUCTION

    def check(self, folder: Path, signature: bytes, where: str) -> None:
        """Raises GateFailed, which names `where`, unless the signature is theirs and every file is as signed.

        Raises EdgewrightError where that cannot be found out: a key that is none, or a sigstore without keys.
        """
        config = _library("verifying").Config().set_hashing_config(_hashing(folder))
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / SIGNATURE
            file.write_bytes(signature)
            if self.key is None:
                with _sigstore(self.sigstore) as chosen:
                    config.use_sigstore_verifier(identity=self.identity, oidc_issuer=self.issuer, **chosen)
            else:
                with _key(self.key, "--public-key"):
                    config.use_elliptic_key_verifier(public_key=self.key)
            try:
                config.verify(folder, file)
            except Exception as error:  # the library raises whatever its parsers do: none of it may count as verified
                raise GateFailed(
                    f"{where}: its signature is not that of {self._name}, or the files are not those that were "
                    f"signed ({tame(str(error)) or type(error).__name__}); do not use it"
                ) from error

    @property
    def _name(self) -> str:
        return str(self.key) if self.key is not None else f"{self.identity} by {self.issuer}"


def read_signature(folder: Path) -> bytes:
    """The signature in a folder. Raises EdgewrightError where there is none."""
    return read_bytes(folder / SIGNATURE, _MAX_SIGNATURE_BYTES, links=False)


def _hashing(folder: Path) -> Any:
    return _library("hashing").Config().set_ignored_paths(paths=[SIGNATURE])


def _library(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:
        raise MissingTool(f"signatures need model-signing ({error}): pip install 'edgewright[sign]'") from error


def _identity() -> str:
    """A token that says who the CI job is. Asked for here, since model-signing asks a person where no job is."""
    from sigstore.oidc import detect_credential

    found = detect_credential()
    if found is None:
        raise EdgewrightError(
            "--sign-keyless: this is no CI job that has an identity; in GitHub's it needs `permissions: id-token: "
            "write`, elsewhere --sign-key signs with a key of one's own"
        )
    return found


@contextmanager
def _sigstore(name: str | Path) -> Iterator[dict[str, Any]]:
    """Which sigstore, as model-signing takes it; what it says of one whose keys cannot be had, in a sentence."""
    if isinstance(name, Path):
        read_bytes(name, _MAX_TRUST_BYTES)
    try:
        yield {"trust_config": name} if isinstance(name, Path) else {"use_staging": name == STAGING}
    except EdgewrightError:
        raise
    except Exception as error:  # sigstore, tuf and pydantic have no common error
        raise EdgewrightError(
            f"--sigstore {name}: cannot be used ({type(error).__name__}: {tame(str(error))}); production and staging "
            "need the network, a file holds a sigstore client trust configuration"
        ) from error


def _public(key: Path) -> bytes:
    """The public key to a private one, in PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    with _key(key, "--sign-key"):
        private = load_pem_private_key(read_bytes(key, _MAX_KEY_BYTES), None)
        return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@contextmanager
def _key(path: Path, option: str) -> Iterator[None]:
    read_bytes(path, _MAX_KEY_BYTES)  # a missing file, a device or a pipe ends here
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:  # what cryptography says of a key of another kind
        raise EdgewrightError(
            f"{option} {path}: is no elliptic-curve key in PEM without a password (P-256, P-384 or P-521; openssl "
            f"ecparam -name prime256v1 -genkey -noout makes one): {tame(str(error))}"
        ) from error


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except EdgewrightError:
        raise
    except Exception as error:  # sigstore has no common error: no identity, no network, a log that refuses
        raise EdgewrightError(
            f"{folder}: cannot be signed ({type(error).__name__}: {tame(str(error))}); keyless signatures need "
            "the network and a CI job with `permissions: id-token: write`, --sign-key a key of one's own"
        ) from error
