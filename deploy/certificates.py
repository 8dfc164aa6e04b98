"""Fills the mesh's TLS secrets: an authority of its own, and a certificate for each service that it signs.

    python -m deploy.certificates --settings deploy/settings.toml            # what is empty
    python -m deploy.certificates --settings deploy/settings.toml --renew    # all of them, by a new authority
    python -m deploy.certificates --env-folder .tapewatch/compose            # env files for deploy/compose.yaml instead

The authority's key is forgotten as soon as the certificates are signed. Whoever has an authority of their own puts
`certificate`, `key` and `authority` (PEM) into the secrets `<name>/tls/<service>` instead, and never runs this.
"""

import argparse
import datetime
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import boto3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.settings import DEFAULT_FILE, DeploySettings, read

SERVICES: Final = ("ingest", "dispatch", "scorer", "gateway", "lambda")
VALID_DAYS: Final = 397
_SKEW = datetime.timedelta(hours=1)
_PEM = serialization.Encoding.PEM


def secret_values(settings: DeploySettings, days: int = VALID_DAYS) -> dict[str, dict[str, str]]:
    """By service, the fields of its TLS secret. Each certificate is good for serving and for calling."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = _named(f"{settings.name} authority")
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


def fill(client: Any, settings: DeploySettings, *, renew: bool) -> list[str]:
    """Put certificates into the secrets; all of them, since they must share an authority.

    Returns the names of the secrets that were written; none when all have certificates and `renew` is not asked.
    """
    names = {service: f"{settings.name}/tls/{service}" for service in SERVICES}
    if not renew and all(_has_certificate(client, name) for name in names.values()):
        return []
    values: Mapping[str, Mapping[str, str]] = secret_values(settings)
    for service, name in names.items():
        client.put_secret_value(SecretId=name, SecretString=json.dumps(values[service]))
    return list(names.values())


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
    parser.add_argument("--renew", action="store_true", help="new certificates also where there are some")
    parser.add_argument("--env-folder", type=Path, help="write env files for containers on one machine there instead")
    given = parser.parse_args()
    settings = read(given.settings)
    if given.env_folder is not None:
        print(*write_env_files(given.env_folder, settings), sep="\n")
        return
    written = fill(boto3.client("secretsmanager", region_name=settings.region), settings, renew=given.renew)
    print(f"certificates: {', '.join(written) if written else 'all secrets have some'}")


if __name__ == "__main__":
    main()
