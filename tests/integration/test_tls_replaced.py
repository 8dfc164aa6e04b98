"""Certificates that are replaced while a process starts: what it serves with is one set, and it does not fail."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from services.domain.errors import NotConfiguredError
from services.runtime.tls import LOOK_SECONDS, SETTLE_SECONDS, TlsFiles, TlsMaterial, TlsWatch
from tests.certificates import Authority, replace

LOOKS = 5
"""So often the certificate's file is looked at or opened while a set is read and checked."""


class WatchedPath(type(Path())):  # type: ignore[misc]
    """A file that tells whenever somebody is about to open it or look at it."""

    before_each: Callable[[], object]

    def __fspath__(self) -> str:
        self.before_each()
        return str(self)


def watched(path: Path, before_each: Callable[[], object]) -> Path:
    made = WatchedPath(path)
    made.before_each = before_each
    return made


def files(certificate: Path) -> TlsFiles:
    folder = Path(certificate.parent)
    return TlsFiles(certificate, folder / "server.key", folder / "ca.pem", "TLS_CA_FILE")


def written(folder: Path, authority: Authority) -> Path:
    """A whole set; its certificate's path."""
    certificate, _ = authority.issue("server").write(folder, "server")
    replace(folder / "ca.pem", authority.pem)
    return certificate


def assert_pair(material: TlsMaterial) -> None:
    assert material.certificate is not None
    assert material.key is not None
    certificate = x509.load_pem_x509_certificate(material.certificate)
    assert load_pem_private_key(material.key, None).public_key() == certificate.public_key()


@pytest.mark.parametrize("look", range(1, LOOKS + 1))
def test_what_is_used_is_what_was_checked_whenever_the_files_are_replaced(look: int, tmp_path: Path) -> None:
    """The whole set is replaced just before the certificate's file is asked for the n-th time."""
    old, new = Authority("old authority"), Authority("new authority")
    certificate = written(tmp_path, old)
    asked = 0

    def replaced() -> None:
        nonlocal asked
        asked += 1
        if asked == look:
            written(tmp_path, new)

    watch = TlsWatch(files(watched(certificate, replaced)))
    assert asked >= look, "the files were replaced"
    assert_pair(watch.current())
    time.sleep(LOOK_SECONDS * 1.1)
    material = watch.current()
    assert_pair(material)
    assert material.certificate == certificate.read_bytes()
    assert material.authority == new.pem


@pytest.mark.parametrize("first", ["server.pem", "server.key"])
def test_a_start_within_a_replacement_waits_for_its_end(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds in ("SETTLE_SECONDS", "_WAIT_SECONDS"):
        monkeypatch.setattr(f"services.runtime.tls.{seconds}", 120.0)
    authority = Authority("authority")
    certificate = written(tmp_path, authority)
    issued = authority.issue("server")
    contents = {"server.pem": issued.certificate, "server.key": issued.key}
    replace(tmp_path / first, contents.pop(first))
    (second,) = contents
    looks = itertools.count(1)

    def ended() -> None:
        if next(looks) == 3 * LOOKS:
            replace(tmp_path / second, contents[second])

    material = TlsWatch(files(watched(certificate, ended))).current()
    assert (material.certificate, material.key) == (issued.certificate, issued.key)


def test_a_set_that_is_wrong_for_good_is_refused_at_the_first_look(tmp_path: Path) -> None:
    authority = Authority("authority")
    certificate = written(tmp_path, authority)
    replace(tmp_path / "server.key", authority.issue("server").key)
    time.sleep(SETTLE_SECONDS * 1.1)
    looks = itertools.count()
    with pytest.raises(NotConfiguredError, match=r"server\.key is not the key of .*server\.pem"):
        TlsWatch(files(watched(certificate, lambda: next(looks))))
    assert next(looks) <= LOOKS


def test_a_set_that_could_not_be_used_is_looked_at_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing about the files need change for that: what was away may be there again."""
    old, new = Authority("old authority"), Authority("new authority")
    certificate = written(tmp_path, old)
    broken = False

    def away() -> None:
        if broken:
            raise PermissionError(13, "Permission denied")

    watch = TlsWatch(files(watched(certificate, away)))
    former = watch.current()
    written(tmp_path, new)
    broken = True
    for _ in range(3):
        time.sleep(LOOK_SECONDS * 1.1)
        assert watch.current() is former
    assert caplog.text.count("the former certificates stay in use") == 1, "said once"
    broken = False
    time.sleep(LOOK_SECONDS * 1.1)
    assert watch.current().authority == new.pem
