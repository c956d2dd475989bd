"""Signatures that whoever verifies those of SNS can verify, by a certificate of this router's own."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from eventrouter.errors import EventRouterError
from eventrouter_sns.messages import canonical

FILE = "signing.pem"
_YEARS = 20  # nothing here renews it


class Signer:
    """Signs messages. name, certificate: of the file that verifiers fetch, and what is in it."""

    def __init__(self, pem: bytes) -> None:
        key = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValueError("its key is no RSA key")
        certificate = x509.load_pem_x509_certificate(pem)
        if certificate.public_key() != key.public_key():
            raise ValueError("its key and its certificate don't belong together")
        self._key = key
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM)
        self.name = f"SimpleNotificationService-{certificate.fingerprint(hashes.SHA256()).hex()[:32]}.pem"

    def sign(self, message: Mapping[str, str], version: int) -> str:
        """The signature of a message in SNS's shape. version: 1 is SHA-1, which SNS signs with by default, 2 is SHA-256."""
        hash = hashes.SHA1() if version == 1 else hashes.SHA256()  # noqa: S303 - what is signed is our own message
        return base64.b64encode(self._key.sign(canonical(message), padding.PKCS1v15(), hash)).decode()


def signer(folder: Path, now: float) -> Signer:
    """The one whose key is in `folder`; made when there is none. now: seconds since 1970. Raises EventRouterError."""
    file = folder / FILE
    if not file.exists():
        _write(file, _make(now))
    try:
        return Signer(file.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise EventRouterError(f"{file} can't be used: {error}; restore it, or remove it and the next start makes another") from None


def _make(now: float) -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "eventrouter sns")])
    begin = datetime.fromtimestamp(now, UTC) - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=365 * _YEARS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private + certificate.public_bytes(serialization.Encoding.PEM)


def _write(file: Path, pem: bytes) -> None:
    """All of it, or nothing, and for its owner's eyes alone."""
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(pem)
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)
