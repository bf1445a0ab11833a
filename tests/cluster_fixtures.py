# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three etcd members as the role etcd configures them, on the loopback, with a site's certificates.

Their configuration is the role's template; certificates and keys have the names that the
role pki gives them, so that playbooks go on from there.
"""

from __future__ import annotations

import datetime
import ipaddress
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from dockerjob_core.kvs import Endpoint, Kvs
from dockerjob_core.kvs_auth import AuthState, Permission, plan
from etcd_fixtures import free_port

ROLE = Path(__file__).parents[1] / "roles/etcd"
MEMBERS = ("m1", "m2", "m3")
MONTH = datetime.timedelta(days=30)
BROKER, ADMINISTRATOR = "dockerjob-broker", "dockerjob-auth"


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@dataclass
class SitePki:
    """What the role pki keeps on the controller, in *directory*."""

    directory: Path
    lifetime: datetime.timedelta = MONTH
    _keys: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)

    def path(self, stem: str, suffix: str = ".pem") -> Path:
        return self.directory / f"{stem}{suffix}"

    def make(self) -> None:
        """Make all that a site has."""
        self.directory.mkdir(mode=0o700, parents=True)
        for authority in ("ca", "peer_ca", "job_ca"):
            self.authority(authority)
        for number, member in enumerate(MEMBERS, 1):
            self.member(member, f"127.0.0.1{number}")
        for client in ("root", BROKER, ADMINISTRATOR):
            self.issue(f"client-{client}", client)

    def authority(self, name: str) -> None:
        stem = f"authority-{name}"
        subject = common_name(f"dockerjob {name}")
        ca = x509.BasicConstraints(ca=True, path_length=0)
        self._sign(stem, stem, subject, subject, [(ca, True)], datetime.timedelta(days=365))

    def member(self, name: str, address: str) -> None:
        """Make a member's two certificates, or make them anew with their keys."""
        self._leaf(f"member-{name}", "etcd-member", "ca", self._for_member(name, address), self.lifetime)
        self.peer(name, address, self.lifetime)

    def peer(self, name: str, address: str, lifetime: datetime.timedelta) -> None:
        """Make the certificate that a member has for the others."""
        self._leaf(f"peer-{name}", "etcd-peer", "peer_ca", self._for_member(name, address), lifetime)

    def _for_member(self, name: str, address: str) -> list[tuple[x509.ExtensionType, bool]]:
        names: list[x509.GeneralName] = [x509.DNSName(host) for host in ("etcd", "localhost", name)]
        names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ("127.0.0.1", address)]
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        return [(x509.SubjectAlternativeName(names), False), (usage, False)]

    def issue(
        self, stem: str, name: str, authority: str = "ca", lifetime: datetime.timedelta | None = None
    ) -> None:
        """Make a client certificate with the common name *name*."""
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        self._leaf(stem, name, authority, [(usage, False)], lifetime or self.lifetime)

    def not_after(self, stem: str) -> datetime.datetime:
        return x509.load_pem_x509_certificate(self.path(stem).read_bytes()).not_valid_after_utc

    def _leaf(
        self,
        stem: str,
        name: str,
        authority: str,
        extensions: list[tuple[x509.ExtensionType, bool]],
        lifetime: datetime.timedelta,
    ) -> None:
        issuer = common_name(f"dockerjob {authority}")
        leaf = x509.BasicConstraints(ca=False, path_length=None)
        self._sign(
            stem, f"authority-{authority}", common_name(name), issuer, [(leaf, True), *extensions], lifetime
        )

    def _sign(
        self,
        stem: str,
        signer: str,
        subject: x509.Name,
        issuer: x509.Name,
        extensions: list[tuple[x509.ExtensionType, bool]],
        lifetime: datetime.timedelta,
    ) -> None:
        key = self._keys.setdefault(stem, ec.generate_private_key(ec.SECP256R1()))
        end = datetime.datetime.now(datetime.UTC) + lifetime
        builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(end - 2 * lifetime).not_valid_after(end)
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        pem = serialization.Encoding.PEM
        certificate = builder.sign(self._keys[signer], hashes.SHA256())
        self.path(stem).write_bytes(certificate.public_bytes(pem))
        self.path(stem, ".key").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        self.path(stem, ".key").chmod(0o600)


@dataclass
class Member:
    """One member, its files, and its process."""

    name: str
    address: str
    port: int
    directory: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def config(self) -> Path:
        return self.directory / "config"

    def start(self) -> None:
        with (self.directory / "etcd.log").open("ab") as log:
            argv = ["etcd", "--config-file", str(self.config / "etcd.yml")]
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)

    def stop(self) -> None:
        """Kill the member, as a crash would."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class SiteEtcd:
    """The cluster, and who may speak to it."""

    pki: SitePki
    peer_port: int
    members: list[Member]

    def endpoint(self, stem: str, member: int = 0, timeout: float = 5.0) -> Endpoint:
        """Endpoint of one member for who has the certificate *stem*."""
        target = f"{self.members[member].address}:{self.members[member].port}"
        ca, cert, key = (
            str(path)
            for path in (self.pki.path("authority-ca"), self.pki.path(stem), self.pki.path(stem, ".key"))
        )
        return Endpoint(target, ca, cert, key, timeout=timeout)

    def broker(self) -> Kvs:
        """Connect as the broker does, with its two identities."""
        return Kvs.connect(
            self.endpoint(f"client-{BROKER}"), self.endpoint(f"client-{ADMINISTRATOR}", timeout=10)
        )

    def job(self, job_id: str, member: int = 0) -> Endpoint:
        """Endpoint of the job, with a certificate that its authority has signed now."""
        self.pki.issue(f"job-{job_id}", f"job-{job_id}", "job_ca")
        return self.endpoint(f"job-{job_id}", member)

    def configure(self, member: Member) -> None:
        """Write what the role writes, but that fewer syncs and shorter elections are good enough here."""
        variables = self._variables(member)
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)  # noqa: S701 - no HTML
        template = environment.from_string((ROLE / "templates/etcd.yml.j2").read_text())
        (member.config / "etcd.yml").write_text(template.render(variables) + "\nunsafe-no-fsync: true\n")
        self.install(member)

    def install(self, member: Member) -> None:
        """Write the member's certificates, as ``tasks/certificates.yml`` does."""
        parts = {
            "ca.pem": ["authority-ca.pem"],
            "peer-ca.pem": ["authority-peer_ca.pem"],
            "peer.pem": [f"peer-{member.name}.pem", f"peer-{member.name}.key"],
            "client-ca.pem": ["authority-ca.pem", "authority-job_ca.pem"],
            "member.pem": [f"member-{member.name}.pem", f"member-{member.name}.key"],
            "root.pem": ["client-root.pem", "client-root.key"],
        }
        for name, sources in parts.items():
            new = member.config / f"{name}.new"
            new.write_text("".join((self.pki.directory / source).read_text() for source in sources))
            new.chmod(0o644 if name.endswith("ca.pem") else 0o440)
            shutil.chown(new, group="etcd")
            new.rename(member.config / name)

    def start(self) -> None:
        for member in self.members:
            member.start()
        for number in range(len(self.members)):
            with Kvs.connect(self.endpoint("client-root", number, timeout=20)) as kvs:
                kvs.get("/")

    def let_only_certificates_in(self) -> None:
        """Do what the role's ``tasks/auth.yml`` does."""
        broker = frozenset(
            Permission(entry["key"].encode(), entry["range_end"].encode(), "readwrite")
            if "key" in entry
            else Permission.on_prefix(entry["prefix"], "readwrite")
            for entry in yaml.safe_load((ROLE / "vars/main.yml").read_text())["_etcd_broker_permissions"]
        )
        root = frozenset(["root"])
        want = AuthState({"root": root, ADMINISTRATOR: root, BROKER: frozenset([BROKER])}, {BROKER: broker})
        with Kvs.connect(self.endpoint("client-root")) as kvs:
            kvs.auth.apply(plan(want, AuthState()))
            kvs.auth.enable()

    def _variables(self, member: Member) -> dict[str, Any]:
        defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
        return {
            **defaults,
            "ansible_managed": "a test",
            "inventory_hostname": member.name,
            "hostvars": {other.name: {"etcd_address": other.address} for other in self.members},
            "etcd_address": member.address,
            "etcd_members": [other.name for other in self.members],
            "etcd_client_port": member.port,
            "etcd_peer_port": self.peer_port,
            "etcd_config_directory": str(member.config),
            "_etcd_data_directory": str(member.directory / "data"),
            "etcd_heartbeat_ms": 50,
            "etcd_election_ms": 500,
        }


@contextmanager
def running_site(directory: Path, lifetime: datetime.timedelta = MONTH) -> Iterator[SiteEtcd]:
    """Run a site's etcd under *directory*, authentication on."""
    members = [
        Member(name, f"127.0.0.1{number}", free_port(), directory / name)
        for number, name in enumerate(MEMBERS, 1)
    ]
    site = SiteEtcd(SitePki(directory / "pki", lifetime), free_port(), members)
    site.pki.make()
    try:
        for member in members:
            member.config.mkdir(parents=True)
            site.configure(member)
        site.start()
        site.let_only_certificates_in()
        yield site
    finally:
        for member in members:
            member.stop()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteEtcd]:
    """A site's etcd for the whole session: a test uses keys of its own and leaves none."""
    with running_site(tmp_path_factory.mktemp("site")) as cluster:
        yield cluster
