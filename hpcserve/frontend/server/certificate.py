"""The certificate that the HTTP server shows to its clients, checked before it is used. It makes none."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from hpcserve.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_CERT, _KEY = "frontend.tls_cert", "frontend.tls_key"


def server_tls(cert: Path, key: Path) -> ssl.SSLContext:
    """Return the server's side of TLS.

    Raises `ConfigError` where a file cannot be read, the two do not belong together, the certificate is not valid now,
    or others may read the key.
    """
    _check_readers(key)
    _check_dates(_read(cert), cert)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key, password=lambda: b"")  # instead of asking at a terminal
    except (ssl.SSLError, OSError, ValueError) as err:
        raise ConfigError(
            f"{_CERT} = {cert} and {_KEY} = {key} do not work together: the key has to be the certificate's, in PEM, "
            f"without a passphrase ({getattr(err, 'reason', None) or err})",
            param=_KEY,
        ) from err
    return context


def is_self_signed(cert: Path) -> bool:
    """Return whether clients have to be given the certificate to trust it. Raises `ConfigError`."""
    found = _read(cert)
    return found.issuer == found.subject


def _read(path: Path) -> Certificate:
    from cryptography.x509 import load_pem_x509_certificate

    try:
        return load_pem_x509_certificate(path.read_bytes())
    except OSError as err:
        raise ConfigError(f"{_CERT} = {path} cannot be read: {err.strerror}", param=_CERT) from err
    except ValueError as err:
        raise ConfigError(f"{_CERT} = {path} is no certificate in PEM", param=_CERT) from err


def _check_dates(cert: Certificate, path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    if now >= cert.not_valid_after_utc:
        raise ConfigError(f"{_CERT} = {path} expired on {cert.not_valid_after_utc:%Y-%m-%d %H:%M} UTC", param=_CERT)
    if now < cert.not_valid_before_utc:
        start = f"{cert.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise ConfigError(f"{_CERT} = {path} is not valid before {start}; is the clock right?", param=_CERT)


def _check_readers(path: Path) -> None:
    try:
        mode = path.stat().st_mode
        with path.open("rb"):
            pass
    except OSError as err:
        raise ConfigError(f"{_KEY} = {path} cannot be read: {err.strerror}", param=_KEY) from err
    if mode & 0o077:
        raise ConfigError(f"others may read {_KEY} = {path} (mode {mode & 0o777:o}); chmod 600 {path}", param=_KEY)
