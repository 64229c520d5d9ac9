"""The TLS identity of a deployment: one self-signed certificate that is its own authority, shared by its processes.

Whoever can read the private key belongs to the deployment; nobody else can open a connection to any of its parts.
`distributed`'s temporary credentials work the same way, but vanish with the process that made them.
"""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Security

_LIFETIME = datetime.timedelta(days=365)


def create_identity() -> tuple[bytes, bytes]:
    """Return a new certificate and its private key, both PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hpcserve")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # nodes' clocks differ
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        cert.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


@dataclass(frozen=True)
class Identity:
    """An identity on disk, for channels: both sides show the certificate, and take no other."""

    cert: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """Return what a listener uses. Raises `OSError` (`ssl.SSLError` for files that hold something else)."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def client_context(self) -> ssl.SSLContext:
        """Return what connects. Raises as `server_context`."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the certificate names the deployment: nodes' names are not known beforehand
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.cert)
        context.load_cert_chain(self.cert, self.key)
        return context


@cache
def security(cert: Path, key: Path) -> Security:
    """Return Dask's view of an identity: encryption required, both sides show the certificate."""
    from distributed import Security

    return Security(
        require_encryption=True,
        tls_ca_file=str(cert),
        tls_scheduler_cert=str(cert),
        tls_scheduler_key=str(key),
        tls_worker_cert=str(cert),
        tls_worker_key=str(key),
        tls_client_cert=str(cert),
        tls_client_key=str(key),
    )
