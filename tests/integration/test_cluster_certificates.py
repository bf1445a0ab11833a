# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``playbooks/cluster_certificates.yml`` on three members of this machine, with writers at work."""

from __future__ import annotations

import datetime
import os
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from cluster_fixtures import ADMINISTRATOR, BROKER, SiteEtcd, running_site
from dockerjob_core.errors import KvsError
from dockerjob_core.kvs import Kvs

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
LONGEST_PAUSE = 5  # seconds: when the retries that every call makes end


@dataclass
class Writer(threading.Thread):
    """Puts a key over and over, on a connection that lasts and on ones that don't."""

    site: SiteEtcd
    member: int
    stop: threading.Event
    written: int = 0
    pause: float = 0.0
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        endpoint = self.site.endpoint(f"client-{BROKER}", self.member)
        with Kvs.connect(endpoint) as lasting:
            while not self.stop.is_set():
                started = time.monotonic()
                try:
                    lasting.put(f"/1/{self.member}/a", str(self.written))
                    if self.written % 4 == 0:
                        with Kvs.connect(endpoint) as fresh:
                            fresh.put(f"/1/{self.member}/b", str(self.written))
                except KvsError as error:
                    self.errors.append(str(error))
                self.written += 1
                self.pause = max(self.pause, time.monotonic() - started)
                time.sleep(0.2)  # the playbook wants the cores too


@dataclass
class Controller:
    """An admin's view: an inventory of the members and a submit host, all of them this machine."""

    site: SiteEtcd
    directory: Path

    def write_inventory(self) -> None:
        members = {
            member.name: {
                "etcd_address": member.address,
                "etcd_client_port": member.port,
                "etcd_config_directory": str(member.config),
                "etcd_data_directory": str(member.directory / "data"),
            }
            for member in self.site.members
        }
        broker = {
            "submit_host_config_directory": str(self.directory / "broker"),
            "submit_host_home": str(self.directory / "home"),
            "submit_host_account": "root",
        }
        groups = {"etcd": {"hosts": members}, "submit_hosts": {"hosts": {"submit": broker}}}
        everywhere = {
            "ansible_connection": "local",
            "ansible_become": False,
            "etcd_peer_port": self.site.peer_port,
            "pki_directory": str(self.site.pki.directory),
        }
        for part in ("broker/pki", "home/.ssh"):
            (self.directory / part).mkdir(parents=True)
        key = str(self.site.pki.directory / "ssh-dockerjob")
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "dockerjob", "-f", key], check=True
        )
        document = {"all": {"vars": everywhere, "children": groups}}
        (self.directory / "hosts.yml").write_text(yaml.safe_dump(document))

    def run(self, *arguments: str) -> str:
        """Run the playbook, without its look through the relay; return what it says."""
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible-playbook"),
                *("-i", str(self.directory / "hosts.yml"), "playbooks/cluster_certificates.yml"),
                *("--skip-tags", "verify", *arguments),
            ],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build"), "ANSIBLE_PIPELINING": "1"},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def changes(self, *arguments: str) -> int:
        return sum(int(number) for number in re.findall(r"changed=(\d+)", self.run(*arguments)))


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    directory = tmp_path_factory.mktemp("renewal")
    with running_site(directory / "site") as site:
        # What the members serve to clients has 30 days left, as has the broker's and one of what they serve
        # to each other. The others needn't be renewed: each one takes the playbook a second or more.
        for name in ("root", ADMINISTRATOR):
            site.pki.issue(f"client-{name}", name, lifetime=datetime.timedelta(days=200))
        for member in site.members[1:]:
            site.pki.peer(member.name, member.address, datetime.timedelta(days=200))
            site.install(member)
        found = Controller(site, directory)
        found.write_inventory()
        yield found


@pytest.fixture
def writers(controller: Controller) -> Iterator[list[Writer]]:
    stop = threading.Event()
    threads = [Writer(controller.site, number, stop) for number in range(3)]
    for thread in threads:
        thread.start()
    yield threads
    stop.set()
    for thread in threads:
        thread.join()


def served(site: SiteEtcd) -> list[str]:
    """The certificates that the members serve to clients and to each other."""
    return [
        ssl.get_server_certificate((member.address, port))
        for member in site.members
        for port in (member.port, site.peer_port)
    ]


def made(site: SiteEtcd) -> list[str]:
    """The certificates that the controller has for that."""
    return [
        site.pki.path(f"{kind}-{member.name}").read_text()
        for member in site.members
        for kind in ("member", "peer")
    ]


def test_certificates_are_renewed_while_jobs_write(controller: Controller, writers: list[Writer]) -> None:
    site = controller.site
    before = served(site)
    pids = [member.process.pid for member in site.members if member.process]

    administrator = site.pki.path(f"client-{ADMINISTRATOR}").read_text()

    assert controller.changes() > 0

    after = served(site)
    assert after == made(site)
    assert [old != new for old, new in zip(before, after, strict=True)] == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]
    years = (site.pki.not_after("client-" + BROKER) - datetime.datetime.now(datetime.UTC)).days / 365
    assert years > 2
    assert site.pki.path(f"client-{ADMINISTRATOR}").read_text() == administrator
    assert (
        (controller.directory / "broker/pki/broker.pem")
        .read_text()
        .startswith(site.pki.path(f"client-{BROKER}").read_text())
    )
    assert (
        (controller.directory / "broker/pki/auth.pem")
        .read_text()
        .startswith(site.pki.path(f"client-{ADMINISTRATOR}").read_text())
    )

    assert [member.process.pid for member in site.members if member.process] == pids
    assert [member.process.poll() for member in site.members if member.process] == [None] * 3
    written = [writer.written for writer in writers]
    time.sleep(1)
    assert [writer.errors for writer in writers] == [[], [], []]
    assert min(written) > 20
    assert all(writer.written > count for writer, count in zip(writers, written, strict=True))
    assert max(writer.pause for writer in writers) < LONGEST_PAUSE
