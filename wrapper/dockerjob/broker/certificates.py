# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The job's identity to etcd: a client certificate that lives as long as the job may."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from dockerjob_core.errors import ConfigError

from ..config import CertificateAuthority

_CLOCK_SKEW = datetime.timedelta(minutes=5)


@dataclasses.dataclass(frozen=True)
class ClientCertificate:
    """A certificate and its private key, both PEM."""

    cert: bytes
    key: bytes


def issue(authority: CertificateAuthority, common_name: str, lifetime: float) -> ClientCertificate:
    """Make a client certificate for the etcd user *common_name*, valid for *lifetime* seconds.

    Raises:
        ConfigError: the authority's certificate or key can't be read.
    """
    try:
        ca_cert = x509.load_pem_x509_certificate(Path(authority.cert).read_bytes())
        ca_key = serialization.load_pem_private_key(Path(authority.key).read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"job_ca: can't load {authority.cert} and {authority.key}: {error}") from error
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"job_ca.key: {authority.key} is no elliptic-curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(ca_cert.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(seconds=lifetime) + _CLOCK_SKEW)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return ClientCertificate(
        cert.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
