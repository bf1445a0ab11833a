# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real etcd for tests: one member, TLS with client certificates, on the loopback.

``etcd`` has authentication on, as on a site; ``open_etcd`` has it off, as before the etcd
role turns it on.  Both serve the whole session: a test uses keys of its own and leaves none.
"""

from __future__ import annotations

import datetime
import ipaddress
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from dockerjob_core.kvs import Endpoint, Kvs
from dockerjob_core.kvs_auth import AuthState, plan

_JOB_NUMBERS = count(1000)


def pytest_configure(config: pytest.Config) -> None:
    """Silence what protobuf 3 says of the messages that etcd3 0.12.0 was released with."""
    config.addinivalue_line("filterwarnings", "ignore:Call to deprecated create function:DeprecationWarning")


class Authority:
    """A certificate authority in a directory; :meth:`issue` writes ``<name>.pem`` and ``<name>.key``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = directory / "ca.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self._write(self.ca, builder)

    def issue(self, name: str) -> tuple[Path, Path]:
        """Issue a certificate with the common name *name*, for clients and servers alike."""
        cert, key_file = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        if cert.exists():
            return cert, key_file
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key.public_key()
        ).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        if name == "etcd":
            loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            names = x509.SubjectAlternativeName([x509.DNSName("etcd"), loopback])
            builder = builder.add_extension(names, critical=False)
        self._write(cert, builder)
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return cert, key_file

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def _write(self, path: Path, builder: x509.CertificateBuilder) -> None:
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


@dataclass
class EtcdServer:
    """A running etcd and how to reach it."""

    authority: Authority
    port: int
    data: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def endpoint(self, name: str = "root", timeout: float = 5.0) -> Endpoint:
        """Endpoint whose certificate says that we are the etcd user *name*."""
        cert, key = self.authority.issue(name)
        return Endpoint(self.target, str(self.authority.ca), str(cert), str(key), timeout=timeout)

    def start(self) -> None:
        """Start the daemon on the same data and port as before, and wait for it."""
        cert, key = self.authority.issue("etcd")
        peer = f"http://127.0.0.1:{free_port()}"
        url = f"https://{self.target}"
        with (self.data.parent / "etcd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("etcd", "--name", "test", "--data-dir", str(self.data), "--unsafe-no-fsync"),
                    *("--heartbeat-interval", "20", "--election-timeout", "200"),
                    *("--listen-client-urls", url, "--advertise-client-urls", url),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", f"test={peer}", "--client-cert-auth"),
                    *("--trusted-ca-file", str(self.authority.ca), "--log-level", "error"),
                    *("--cert-file", str(cert), "--key-file", str(key)),
                ],
                stdout=log,
                stderr=log,
            )
        with Kvs.connect(self.endpoint(timeout=15)) as kvs:
            kvs.get("/")

    def stop(self) -> None:
        """Kill the daemon, as a crash would."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_etcd(directory: Path) -> Iterator[EtcdServer]:
    """Run an etcd with its own authority under *directory*, without authentication."""
    (directory / "pki").mkdir(parents=True)
    server = EtcdServer(Authority(directory / "pki"), free_port(), directory / "data")
    try:
        server.start()
        yield server
    finally:
        server.stop()


def turn_auth_on(server: EtcdServer) -> None:
    """Make the user ``root`` and turn authentication on, as the etcd role does."""
    with Kvs.connect(server.endpoint()) as kvs:
        kvs.auth.apply(plan(AuthState({"root": frozenset(["root"])}, {"root": frozenset()}), AuthState()))
        kvs.auth.enable()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd with authentication on."""
    with running_etcd(tmp_path_factory.mktemp("etcd") / "on") as server:
        turn_auth_on(server)
        yield server


@pytest.fixture(scope="session")
def open_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd with authentication off."""
    with running_etcd(tmp_path_factory.mktemp("etcd") / "off") as server:
        yield server


@pytest.fixture
def kvs(etcd: EtcdServer) -> Iterator[Kvs]:
    """A connection as ``root`` to the etcd with authentication on."""
    with Kvs.connect(etcd.endpoint()) as connection:
        yield connection


@pytest.fixture
def job_id() -> str:
    """A job id that no other test has."""
    return str(next(_JOB_NUMBERS))
