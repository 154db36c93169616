"""A certificate authority of a test, and certificates for NBD over TLS as QEMU and libnbd want them: PEM, EC keys."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab.paths import give_to_qemu

_BEGIN, _END = timedelta(hours=1), timedelta(days=365)


class Authority:
    """One CA. Its folders hold `ca-cert.pem` beside what it issues."""

    def __init__(self, name: str = "lab CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, 0), critical=True)
        self._certificate = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())

    def server(self, folder: Path, *addresses: str) -> Path:
        """A folder for QEMU, with a certificate for these host names and IP addresses."""
        return self._issue(folder, "server", addresses)

    def client(self, folder: Path, *, days: int = 365) -> Path:
        """A folder for who connects; the certificate is good for so many days."""
        return self._issue(folder, "client", (), timedelta(days=days))

    def _issue(self, folder: Path, what: str, addresses: tuple[str, ...], end: timedelta = _END) -> Path:
        folder.mkdir(mode=0o755)
        key = ec.generate_private_key(ec.SECP256R1())
        use = ExtendedKeyUsageOID.SERVER_AUTH if what == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = self._builder(_named(f"lab {what}"), key, end)
        builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        if addresses:
            builder = builder.add_extension(x509.SubjectAlternativeName([_alias(a) for a in addresses]), critical=False)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files = {
            "ca-cert.pem": _pem(self._certificate),
            f"{what}-cert.pem": _pem(builder.sign(self._key, hashes.SHA256())),
            f"{what}-key.pem": private,
        }
        for name, data in files.items():
            (folder / name).write_bytes(data)
            (folder / name).chmod(0o600 if name.endswith("key.pem") else 0o644)
            if what == "server":
                give_to_qemu(folder / name)
        return folder

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, end: timedelta = _END
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return x509.CertificateBuilder(
            self._name, subject, key.public_key(), x509.random_serial_number(), now - _BEGIN, now + end
        )


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alias(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
