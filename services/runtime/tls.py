"""Certificates from files that may be replaced while the process runs.

Whoever rotates certificates (cert-manager, a side-car, an operator) replaces the files; what changed is looked for at
most once a second, when a connection or a call needs it. A new set that cannot be used, or is only half there, is
logged and leaves the former one in use. Connections that exist keep the certificates they were made with.
"""

import logging
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.domain.errors import NotConfiguredError

LOOK_SECONDS: Final = 1.0
"""How often, at most, the files are looked at."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where certificates are. `authority_setting` names the authority's variable in error messages."""

    certificate: Path | None
    key: Path | None
    authority: Path | None
    authority_setting: str


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """The files' content, PEM, checked: the key is the certificate's, and the certificate is valid now."""

    certificate: bytes | None
    key: bytes | None
    authority: bytes | None


def load(files: TlsFiles) -> TlsMaterial:
    """Read and check the files.

    Raises: NotConfiguredError for a file that cannot be read or is no PEM, a key that is not the certificate's or has
    a passphrase, and a certificate that is not valid now.
    """
    if (files.certificate is None) != (files.key is None):
        raise NotConfiguredError("TLS needs a certificate and its key", "set both TLS_CERT_FILE and TLS_KEY_FILE")
    authority = None
    if files.authority is not None:
        authority = _read(files.authority, files.authority_setting)
        _check_authority(files.authority, authority, files.authority_setting)
    if files.certificate is None or files.key is None:
        return TlsMaterial(None, None, authority)
    certificate, key = _read(files.certificate, "TLS_CERT_FILE"), _read(files.key, "TLS_KEY_FILE")
    _check_pair(files.certificate, files.key)
    return TlsMaterial(certificate, key, authority)


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotConfiguredError(
            f"TLS cannot read {path} ({error.strerror})", f"set {setting} to a readable file"
        ) from error


def _check_authority(path: Path, pem: bytes, setting: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
        raise NotConfiguredError(f"TLS finds no certificate in {path}", f"set {setting} to a PEM file") from error


def _check_pair(certificate: Path, key: Path) -> None:
    """Let OpenSSL judge certificate and key, by a handshake with oneself in memory."""

    def no_passphrase() -> str:
        raise NotConfiguredError(f"TLS wants no passphrase, and {key} has one", "set TLS_KEY_FILE to a plain key")

    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        shown.load_cert_chain(certificate, key, no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise NotConfiguredError(
                f"TLS finds that {key} is not the key of {certificate}", "set TLS_CERT_FILE and TLS_KEY_FILE to a pair"
            ) from error
        raise NotConfiguredError(
            f"TLS finds no certificate in {certificate}, or no key in {key}",
            "set TLS_CERT_FILE and TLS_KEY_FILE to PEM files",
        ) from error
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is all that is trusted
    trusting.load_verify_locations(certificate)
    try:
        _handshake(shown, trusting)
    except ssl.SSLCertVerificationError as error:
        raise NotConfiguredError(
            f"TLS refuses {certificate} ({error.verify_message})",
            "set TLS_CERT_FILE to a certificate that is valid now",
        ) from error


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    waiting = set(ends)
    while waiting:
        for end in ends:
            if end in waiting:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                waiting.discard(end)


class TlsWatch:
    """The content of the files as it is now; may be asked from any thread.

    Raises: NotConfiguredError, when it is made with files that cannot be used.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._material = load(files)
        self._look_at = time.monotonic() + LOOK_SECONDS

    def current(self) -> TlsMaterial:
        """What to use for a new connection. The object is the same as before unless a file changed."""
        with self._lock:
            now = time.monotonic()
            if now < self._look_at:
                return self._material
            self._look_at = now + LOOK_SECONDS
            signature = self._signature()
            if signature != self._seen:
                self._seen = signature
                try:
                    self._material = load(self._files)
                except NotConfiguredError as error:
                    _log.warning("the former certificates stay in use: %s", error.message)
                else:
                    _log.info("certificates were replaced: %s", self._files.certificate or self._files.authority)
            return self._material

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What changes whenever a file is replaced or written, through symbolic links as well."""
        return tuple(_identity(path) for path in (self._files.certificate, self._files.key, self._files.authority))


def _identity(path: Path | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
