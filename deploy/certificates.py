"""Fills the mesh's TLS secrets: an authority of its own, and a certificate for each service that it signs.

    python -m deploy.certificates --settings deploy/settings.toml            # what is empty
    python -m deploy.certificates --settings deploy/settings.toml --renew    # all of them, while the mesh runs
    python -m deploy.certificates --env-folder .tapewatch/compose            # env files for deploy/compose.yaml instead

The authority's key is forgotten as soon as the certificates are signed, so that new ones come of a new authority.
`--renew` lets all trust it beside the former one first, then show certificates of it, then forget the former one, with
pauses in which every service and Lambda asks for its secret again (services/runtime/secret_files.py).

Whoever has an authority of their own puts `certificate`, `key` and `authority` (PEM) into the secrets
`<name>/tls/<service>` instead, and never runs this.
"""

import argparse
import datetime
import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.settings import DEFAULT_FILE, DeploySettings, read
from services.domain.errors import TapewatchError
from services.runtime.aws import AwsResource, open_client
from services.runtime.errors import exit_code_of
from services.runtime.secret_files import REFRESH_SECONDS

SERVICES: Final = ("ingest", "dispatch", "scorer", "gateway", "lambda")
VALID_DAYS: Final = 397
PAUSE_SECONDS: Final = 2 * REFRESH_SECONDS
"""In which each service, and each Lambda that is called meanwhile, has asked for its secret again."""

_SKEW = datetime.timedelta(hours=1)
_PEM = serialization.Encoding.PEM


def secret_values(settings: DeploySettings, days: int = VALID_DAYS) -> dict[str, dict[str, str]]:
    """By service, the fields of its TLS secret. Each certificate is good for serving and for calling."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own: of two authorities with one name, a certificate's issuer is not found where both are trusted.
    authority_name = _named(f"{settings.name} authority {secrets.token_hex(8)}")
    authority = (
        _builder(authority_key, authority_name, authority_name, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    values = {}
    for service in SERVICES:
        key = ec.generate_private_key(ec.SECP256R1())
        host = f"{service}.{settings.network.namespace}"
        names = [x509.DNSName(host), x509.DNSName("localhost")]  # localhost: the container's own health check
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            _builder(key, _named(host), authority_name, days)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
            .sign(authority_key, hashes.SHA256())
        )
        private = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        values[service] = {
            "certificate": certificate.public_bytes(_PEM).decode(),
            "key": private.decode(),
            "authority": authority.public_bytes(_PEM).decode(),
        }
    return values


def write_env_files(folder: Path, settings: DeploySettings) -> list[Path]:
    """A file of variables for each service, as `tapewatch secret-files` reads them, and one token for all."""
    folder.mkdir(parents=True, exist_ok=True)
    token = secrets.token_urlsafe(32)
    written = []
    for service, fields in secret_values(settings).items():
        lines = [f"AUTH_TOKEN={token}"]
        for variable, field in (("TLS_CERT_PEM", "certificate"), ("TLS_KEY_PEM", "key"), ("TLS_CA_PEM", "authority")):
            escaped = fields[field].replace("\n", "\\n")
            lines.append(f'{variable}="{escaped}"')
        path = folder / f"{service}.env"
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n")
        written.append(path)
    return written


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, issuer: x509.Name, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def fill(client: Any, settings: DeploySettings) -> list[str]:
    """Put certificates into the secrets; all of them, since they must share an authority.

    Returns the names of the secrets that were written; none when all have certificates.
    """
    names = _secret_names(settings)
    if all(_has_certificate(client, name) for name in names.values()):
        return []
    _put(client, names, secret_values(settings))
    return list(names.values())


def renew(client: Any, settings: DeploySettings, pause: Callable[[str], None]) -> None:
    """Replace all certificates in use, and their authority, so that no call fails.

    `pause` is told what was done, and returns once every service has asked for its secret again. When it is broken off,
    the next renewal begins anew from what is there.

    Raises: SystemExit when a secret is empty: then there is nothing in use.
    """
    names = _secret_names(settings)
    if empty := [name for name in names.values() if not _has_certificate(client, name)]:
        raise SystemExit(f"{', '.join(empty)}: no certificate is there to renew; run this without --renew")
    old = {
        service: json.loads(client.get_secret_value(SecretId=name)["SecretString"]) for service, name in names.items()
    }
    new = secret_values(settings)
    both = {service: {"authority": old[service]["authority"] + new[service]["authority"]} for service in names}
    _put(client, names, {service: old[service] | both[service] for service in names})
    pause("all trust the new authority too")
    _put(client, names, {service: new[service] | both[service] for service in names})
    pause("all show new certificates")
    _put(client, names, new)


def _secret_names(settings: DeploySettings) -> dict[str, str]:
    return {service: f"{settings.name}/tls/{service}" for service in SERVICES}


def _put(client: Any, names: Mapping[str, str], values: Mapping[str, Mapping[str, str]]) -> None:
    for service, name in names.items():
        client.put_secret_value(SecretId=name, SecretString=json.dumps(values[service]))


def _has_certificate(client: Any, name: str) -> bool:
    try:
        value = client.get_secret_value(SecretId=name)["SecretString"]
    except client.exceptions.ResourceNotFoundException:
        return False
    try:
        return "BEGIN CERTIFICATE" in json.loads(value).get("certificate", "")
    except (ValueError, AttributeError):
        return False  # what Secrets Manager makes up for a secret without a value


def main() -> None:
    """Fill the secrets of the deployment that the settings file describes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--settings", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--renew", action="store_true", help="replace those in use, while the mesh runs")
    parser.add_argument("--pause-seconds", type=float, default=PAUSE_SECONDS, help="between the steps of --renew")
    parser.add_argument("--env-folder", type=Path, help="write env files for containers on one machine there instead")
    given = parser.parse_args()
    settings = read(given.settings)
    if given.env_folder is not None:
        print(*write_env_files(given.env_folder, settings), sep="\n")
        return
    secrets_of = AwsResource(
        "Secrets Manager",
        "secret",
        f"{settings.name}/tls/<service>",
        f"name in {given.settings}",
        ("secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"),
        settings.region,
    )
    try:
        client = open_client("secretsmanager", settings.region, secrets_of, "give --env-folder", read_seconds=20.0)
        with secrets_of.translated():
            print(_renewed(client, settings, given.pause_seconds) if given.renew else _filled(client, settings))
    except TapewatchError as error:
        print(f"deploy.certificates: {error.message}", file=sys.stderr)
        raise SystemExit(exit_code_of(error)) from None


def _filled(client: Any, settings: DeploySettings) -> str:
    written = fill(client, settings)
    return f"certificates: {', '.join(written) if written else 'all secrets have some'}"


def _renewed(client: Any, settings: DeploySettings, pause_seconds: float) -> str:
    def pause(done: str) -> None:
        print(f"{done}; going on in {pause_seconds:.0f} s", flush=True)
        time.sleep(pause_seconds)

    renew(client, settings, pause)
    return "renewed: the former authority is forgotten"


if __name__ == "__main__":
    main()
