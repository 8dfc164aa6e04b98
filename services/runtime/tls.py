"""Certificates from files that may be replaced while the process runs.

Whoever rotates certificates (cert-manager, a side-car, an operator) replaces the files, one after another; what changed
is looked for at most once a second, when a connection or a call needs it. A new set that cannot be used, or is only
half there, is logged, leaves the former one in use, and is looked at again. Who has no former one, because it starts in
the midst of a replacement, waits for the end of it. Connections that exist keep the certificates they were made with.
"""

import contextlib
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

SETTLE_SECONDS: Final = 1.0
"""A file that is younger may be one of a set whose others are still to be replaced."""

_WAIT_SECONDS: Final = 3.0
"""How long a start waits, at most, for files that are replaced again and again."""

_AGAIN_SECONDS: Final = 0.02

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


_Signature = tuple[tuple[int, int, int] | None, ...]


def _load(files: TlsFiles) -> tuple[_Signature, TlsMaterial]:
    """Read and check the files, and wait where they are just being replaced: seldom more than a few milliseconds.

    Raises: NotConfiguredError for a certificate without a key, a file that cannot be read or is no PEM, a key that is
    not the certificate's or has a passphrase, and a certificate that is not valid now.
    """
    if (files.certificate is None) != (files.key is None):
        raise NotConfiguredError("TLS needs a certificate and its key", "set both TLS_CERT_FILE and TLS_KEY_FILE")
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        signature, found = _look(files)
        if isinstance(found, TlsMaterial):
            return signature, found
        if time.monotonic() > until or (found is not None and _settled(files)):
            raise found or NotConfiguredError(
                f"TLS finds {files.certificate or files.authority} replaced again and again",
                "leave the files of TLS in place for a second at least",
            )
        time.sleep(_AGAIN_SECONDS)


def _look(files: TlsFiles) -> tuple[_Signature, TlsMaterial | NotConfiguredError | None]:
    """Which files there are, and their content or what is wrong with it; None when they were replaced meanwhile.

    OpenSSL reads the files itself. That it has judged what was read here is known by nothing having changed.
    """
    before = _signature(files)
    found: TlsMaterial | NotConfiguredError
    try:
        found = _checked(files)
    except NotConfiguredError as error:
        found = error
    return before, found if _signature(files) == before else None


def _checked(files: TlsFiles) -> TlsMaterial:
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
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is all that is trusted
    try:
        shown.load_cert_chain(certificate, key, no_passphrase)
        trusting.load_verify_locations(certificate)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise NotConfiguredError(
                f"TLS finds that {key} is not the key of {certificate}", "set TLS_CERT_FILE and TLS_KEY_FILE to a pair"
            ) from error
        raise NotConfiguredError(
            f"TLS finds no certificate in {certificate}, or no key in {key}",
            "set TLS_CERT_FILE and TLS_KEY_FILE to PEM files",
        ) from error
    except OSError as error:
        raise NotConfiguredError(
            f"TLS cannot read {certificate} or {key} ({error.strerror})",
            "set TLS_CERT_FILE and TLS_KEY_FILE to readable files",
        ) from error
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

    Making it waits, a second or so, where the files are just being replaced and are not a set that can be used.

    Raises: NotConfiguredError, when it is made with files that cannot be used.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._seen, self._material = _load(files)
        self._refused = ""
        self._look_at = time.monotonic() + LOOK_SECONDS

    def current(self) -> TlsMaterial:
        """What to use for a new connection; never waits. The object is the same as before unless a file changed."""
        with self._lock:
            now = time.monotonic()
            if now >= self._look_at:
                self._look_at = now + LOOK_SECONDS
                self._follow()
            return self._material

    def _follow(self) -> None:
        """Take what is in the files; what cannot be used yet is looked at again the next time."""
        if not self._refused and _signature(self._files) == self._seen:
            return
        signature, found = _look(self._files)
        if isinstance(found, TlsMaterial):
            self._seen, self._material, self._refused = signature, found, ""
            _log.info("certificates were replaced: %s", self._files.certificate or self._files.authority)
        elif found is not None and (signature, found.message) != (self._seen, self._refused):
            self._seen, self._refused = signature, found.message
            _log.warning("the former certificates stay in use: %s", found.message)


def _paths(files: TlsFiles) -> list[Path | None]:
    return [files.certificate, files.key, files.authority]


def _signature(files: TlsFiles) -> _Signature:
    """What changes whenever a file is replaced or written, through symbolic links as well."""
    return tuple(_identity(path) for path in _paths(files))


def _identity(path: Path | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _settled(files: TlsFiles) -> bool:
    """Whether no file was written or put in its place within the last second."""
    newest = 0.0
    for path in filter(None, _paths(files)):
        with contextlib.suppress(OSError):
            found = path.stat()
            newest = max(newest, found.st_mtime, found.st_ctime)
    return time.time() - newest > SETTLE_SECONDS
