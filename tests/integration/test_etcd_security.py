# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may do what in etcd: the broker, a job, and who has no certificate or the wrong one."""

from __future__ import annotations

import datetime
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster_fixtures import BROKER, SiteEtcd, SitePki, running_site
from cryptography import x509
from dockerjob.broker.certificates import issue
from dockerjob.config import CertificateAuthority
from dockerjob_core import ipam, names
from dockerjob_core.errors import KvsError
from dockerjob_core.jobtree import create_job_tree, read_job_tree, remove_job_tree
from dockerjob_core.kvs import Kvs, RefusedError
from dockerjob_core.kvs_auth import AuthState, plan
from etcd_fixtures import EtcdServer, running_etcd, turn_auth_on

pytestmark = pytest.mark.integration

POOL = ipam.NetworkPool("10.128.0.0/16", 24, "100-200")
DENIED = "permission denied"
DENIED_WATCH = r"(?i)permission ?denied"
MINE, OTHERS = "71", "72"


@pytest.fixture
def broker(site: SiteEtcd) -> Iterator[Kvs]:
    with site.broker() as kvs:
        yield kvs


@pytest.fixture
def trees(broker: Kvs) -> Iterator[dict[str, int]]:
    """The trees of two jobs, and their leases."""
    leases = {job: create_job_tree(broker, job, 1, 60)[0] for job in (MINE, OTHERS)}
    yield leases
    for job in leases:
        remove_job_tree(broker, job)


@pytest.fixture
def job(site: SiteEtcd, trees: dict[str, int]) -> Iterator[Kvs]:
    """A connection as the first of the two jobs."""
    with Kvs.connect(site.job(MINE)) as kvs:
        yield kvs


# -- the broker -------------------------------------------------------------------------


def test_the_broker_leads_a_job_from_its_beginning_to_its_end(site: SiteEtcd, broker: Kvs) -> None:
    for job_id in ("1", "70_3", "999999999"):
        network = ipam.reserve(broker, POOL, job_id)
        lease, _ = create_job_tree(broker, job_id, 1, 60)
        assert broker.lease_keepalive(lease) == 60
        watch = broker.watch_prefix(names.job_prefix(job_id), broker.get_prefix("/1").revision + 1)
        with Kvs.connect(site.job(job_id)) as job:
            job.put(names.finish_key(job_id), "0", lease)
        event = watch.next(5)
        assert event is not None
        assert (event.key, event.value) == (names.finish_key(job_id), b"0")
        assert remove_job_tree(broker, job_id)
        assert ipam.release(broker, job_id) == network


@pytest.mark.parametrize(
    "key", ["/", "/0", "/:", "/a/b", "/dockerjob", "/dockerjob0", "1", "zz", "/molecule/x"]
)
def test_the_broker_may_use_the_keys_of_jobs_and_its_own_only(broker: Kvs, key: str) -> None:
    for attempt in (
        lambda: broker.get(key),
        lambda: broker.put(key, "x"),
        lambda: broker.delete(key),
        lambda: broker.transact({}, {names.job_prefix("1") + "x": b""}, [key]),
    ):
        with pytest.raises(RefusedError, match=DENIED):
            attempt()


def test_the_broker_may_not_use_more_than_its_ranges_at_once(broker: Kvs) -> None:
    for prefix in ("", "/", "/d"):
        with pytest.raises(RefusedError, match=DENIED):
            broker.get_prefix(prefix)
        with pytest.raises(RefusedError, match=DENIED):
            broker.delete_prefix(prefix)
        with pytest.raises(KvsError, match=DENIED_WATCH):
            broker.watch_prefix(prefix, 1)


def test_the_broker_s_everyday_identity_makes_no_users(site: SiteEtcd) -> None:
    root = frozenset(["root"])
    with Kvs.connect(site.endpoint(f"client-{BROKER}")) as kvs:  # for identities too
        for attempt in (
            kvs.auth.users,
            kvs.auth.disable,
            lambda: kvs.identities.add("73"),
            lambda: kvs.identities.remove("73"),
            lambda: kvs.auth.apply(plan(AuthState({"evil": root}), AuthState())),
            lambda: kvs.auth.apply(plan(AuthState({BROKER: root}), AuthState({BROKER: frozenset()}))),
            lambda: kvs.auth.read([], ["root"]),
        ):
            with pytest.raises(RefusedError, match=DENIED):
                attempt()


def test_a_lease_is_never_without_keys_once_the_job_has_its_identity(site: SiteEtcd, broker: Kvs) -> None:
    """etcd lets any client end a lease without keys, so the tree comes before the identity."""
    seen: list[bytes | None] = []
    add = broker.identities.add

    def look(job_id: str) -> None:
        item = broker.get(names.finish_key(job_id))
        seen.append(item.value if item else None)
        add(job_id)

    broker.identities.add = look  # type: ignore[method-assign]
    create_job_tree(broker, "74", 1, 60)
    remove_job_tree(broker, "74")
    assert seen == [b"FALSE"]


# -- a job ------------------------------------------------------------------------------


def test_a_job_may_use_its_own_tree(job: Kvs, trees: dict[str, int]) -> None:
    job.put(names.node_key(MINE, 0, "IP"), "10.128.0.1", trees[MINE])
    assert len(job.get_prefix(names.job_prefix(MINE)).items) == 2
    assert job.delete(names.node_key(MINE, 0, "IP"))


@pytest.mark.parametrize(
    "key", [names.finish_key(OTHERS), names.job_index_key(MINE), "/dockerjob/x", "/7", "/710/x"]
)
def test_a_job_may_use_no_other_key(job: Kvs, key: str) -> None:
    own = names.job_prefix(MINE) + "x"
    for attempt in (
        lambda: job.get(key),
        lambda: job.get_prefix(key),
        lambda: job.put(key, "0"),
        lambda: job.delete(key),
        lambda: job.delete_prefix(key),
        lambda: job.transact({key: b"FALSE"}, {own: b""}),
        lambda: job.transact({}, {own: b"", key: b""}),
        lambda: job.transact({}, {own: b""}, [key]),
    ):
        with pytest.raises(RefusedError, match=DENIED):
            attempt()
    with pytest.raises(KvsError, match=DENIED_WATCH):
        job.watch_prefix(key, 1)


def test_a_job_can_t_end_another_s_lease_or_hang_its_keys_on_it(
    job: Kvs, broker: Kvs, trees: dict[str, int]
) -> None:
    with pytest.raises(RefusedError, match=DENIED):
        job.lease_revoke(trees[OTHERS])
    with pytest.raises(RefusedError, match=DENIED):
        job.put(names.job_prefix(MINE) + "x", "", trees[OTHERS])
    tree = read_job_tree(broker, OTHERS)
    assert tree is not None
    assert tree.running


def test_a_job_sees_no_users_and_administers_nothing(job: Kvs) -> None:
    messages, channel = job._rpc, job._channel
    maintenance, cluster = channel.stub("Maintenance"), channel.stub("Cluster")

    def snapshot(request: Any, timeout: float) -> Any:
        return next(iter(maintenance.Snapshot(request, timeout=timeout)))

    for attempt in (
        job.auth.users,
        job.auth.disable,
        lambda: job.identities.add("73"),
        lambda: job.identities.remove(OTHERS),
        lambda: job.auth.read([names.etcd_user(OTHERS)], []),
        lambda: job.auth.read([], [BROKER]),
        lambda: channel.call("snapshot", snapshot, messages.SnapshotRequest()),
        lambda: channel.call("defragment", maintenance.Defragment, messages.DefragmentRequest()),
        lambda: channel.call("remove a member", cluster.MemberRemove, messages.MemberRemoveRequest(ID=1)),
    ):
        with pytest.raises(RefusedError, match=DENIED):
            attempt()


def test_a_copied_certificate_is_worthless_after_the_job(site: SiteEtcd, broker: Kvs, tmp_path: Path) -> None:
    """The certificate is the one that the broker makes, and has an hour left."""
    pki = site.pki
    made = issue(
        CertificateAuthority(
            cert=str(pki.path("authority-job_ca")), key=str(pki.path("authority-job_ca", ".key"))
        ),
        names.etcd_user("75"),
        3600,
    )
    (tmp_path / "copy.pem").write_bytes(made.cert + made.key)
    copy = replace(site.job("75"), cert=str(tmp_path / "copy.pem"), key=str(tmp_path / "copy.pem"))
    lease, _ = create_job_tree(broker, "75", 1, 60)
    with Kvs.connect(copy) as thief:
        thief.put("/75/x", "1", lease)
        remove_job_tree(broker, "75")
        broker.put("/75/y", "2")
        for attempt in (
            lambda: thief.get("/75/y"),
            lambda: thief.put("/75/x", "1"),
            lambda: thief.delete_prefix("/75/"),
            lambda: thief.get("/dockerjob/x"),
        ):
            with pytest.raises(RefusedError, match=DENIED):
                attempt()
        with pytest.raises(KvsError, match=DENIED_WATCH):
            thief.watch_prefix("/75/", 1)
    broker.delete("/75/y")
    with Kvs.connect(site.endpoint("client-root")) as root:
        assert root.auth.read(["job-75"], ["job-75"]) == AuthState()
        assert [name for name in root.auth.users() if name.startswith("job-")] == []


def test_a_job_s_certificate_lives_as_long_as_the_job_may(site: SiteEtcd) -> None:
    pki = site.pki
    authority = CertificateAuthority(
        cert=str(pki.path("authority-job_ca")), key=str(pki.path("authority-job_ca", ".key"))
    )
    cert = x509.load_pem_x509_certificate(issue(authority, "job-1", 660).cert)
    left = cert.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert 600 < left.total_seconds() <= 660 + 300


# -- certificates on the ports for clients and for members ------------------------------

Handshake = Callable[..., str]


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> SitePki:
    """All certificates of another site."""
    pki = SitePki(tmp_path_factory.mktemp("stranger") / "pki")
    pki.make()
    return pki


@pytest.fixture(scope="module")
def certificates(site: SiteEtcd, stranger: SitePki) -> dict[str, tuple[Path, Path] | None]:
    """Certificate and key by what they are."""
    own = site.pki
    own.issue("expired", "root", lifetime=datetime.timedelta(seconds=1))
    own.issue("job-as-member", "etcd-peer", "job_ca")
    own.issue("job-1", "job-1", "job_ca")
    time.sleep(1.5)

    def files(pki: SitePki, stem: str) -> tuple[Path, Path]:
        return pki.path(stem), pki.path(stem, ".key")

    return {
        "none": None,
        "another site's administrator": files(stranger, "client-root"),
        "another site's member": files(stranger, "peer-m1"),
        "an expired administrator": files(own, "expired"),
        "the broker": files(own, f"client-{BROKER}"),
        "the administrator": files(own, "client-root"),
        "a job": files(own, "job-1"),
        "a job's authority for a member": files(own, "job-as-member"),
        "a member to clients": files(own, "member-m2"),
        "a member": files(own, "peer-m2"),
    }


def shake_hands(site: SiteEtcd, port: int, files: tuple[Path, Path] | None) -> str:
    """Ask the first member for its version; return ``accepted``, ``closed`` or ``refused``."""
    context = ssl.create_default_context(cafile=str(site.pki.path("authority-ca")))
    context.load_verify_locations(site.pki.path("authority-peer_ca"))
    if files:
        context.load_cert_chain(*files)
    member = site.members[0]
    try:
        with (
            socket.create_connection((member.address, port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="etcd") as secure,
        ):
            # With TLS 1.3 the answer to the certificate comes with the first data.
            secure.sendall(b"GET /version HTTP/1.1\r\nHost: etcd\r\n\r\n")
            return "accepted" if secure.recv(100).startswith(b"HTTP/1.1 200") else "closed"
    except ssl.SSLCertVerificationError:
        raise  # we refused the member
    except (ssl.SSLError, ConnectionError):
        return "refused"  # by an alert, which the end of the connection may overtake


@pytest.mark.parametrize("who", ["the broker", "a job", "the administrator"])
def test_clients_with_a_certificate_of_the_site_may_connect(
    site: SiteEtcd, certificates: dict[str, tuple[Path, Path] | None], who: str
) -> None:
    assert shake_hands(site, site.members[0].port, certificates[who]) == "accepted"


@pytest.mark.parametrize(
    "who",
    ["none", "another site's administrator", "another site's member", "a member", "an expired administrator"],
)
def test_clients_without_a_good_certificate_may_not(
    site: SiteEtcd, certificates: dict[str, tuple[Path, Path] | None], who: str
) -> None:
    assert shake_hands(site, site.members[0].port, certificates[who]) == "refused"


def test_members_take_a_member_for_a_member(
    site: SiteEtcd, certificates: dict[str, tuple[Path, Path] | None]
) -> None:
    assert shake_hands(site, site.peer_port, certificates["a member"]) == "accepted"


@pytest.mark.parametrize(
    "who",
    [
        "none",
        "the broker",
        "the administrator",
        "a job",
        "a job's authority for a member",
        "a member to clients",
        "another site's member",
        "an expired administrator",
    ],
)
def test_members_take_nobody_else_for_one(
    site: SiteEtcd, certificates: dict[str, tuple[Path, Path] | None], who: str
) -> None:
    assert shake_hands(site, site.peer_port, certificates[who]) == "refused"


def test_a_member_s_certificate_makes_no_user(site: SiteEtcd) -> None:
    with Kvs.connect(site.endpoint("member-m1")) as kvs, pytest.raises(RefusedError):
        kvs.get("/1/x")


def test_members_speak_tls_only(site: SiteEtcd) -> None:
    for port in (site.members[0].port, site.peer_port):
        with socket.create_connection((site.members[0].address, port), timeout=5) as plain:
            plain.sendall(b"GET /version HTTP/1.0\r\n\r\n")
            assert not plain.recv(100).startswith(b"HTTP/1.0 200")


# -- renewal ----------------------------------------------------------------------------


def test_members_read_their_certificates_anew_for_each_connection(tmp_path: Path) -> None:
    """None is restarted but the first, after the certificates that all began with have expired."""
    with running_site(tmp_path, lifetime=datetime.timedelta(seconds=12)) as short:
        expiry = max(short.pki.not_after(f"peer-{member.name}") for member in short.members)
        short.pki.lifetime = datetime.timedelta(days=1)
        for member in short.members:
            short.pki.member(member.name, member.address)
        short.pki.issue("client-root", "root")
        for member in short.members:
            short.install(member)
        time.sleep(max(0.0, (expiry - datetime.datetime.now(datetime.UTC)).total_seconds()) + 1)
        first = short.members[0]
        first.stop()
        log = first.directory / "etcd.log"
        said = len(log.read_text())
        first.start()
        for number in range(3):
            with Kvs.connect(short.endpoint("client-root", number, timeout=20)) as kvs:
                kvs.put("/1/x", "1")
        assert "rejected connection" not in log.read_text()[said:]


# -- what etcd 3.4 doesn't hold to ------------------------------------------------------
#
# Strict, so that a newer etcd fails them and the page docs/security.md can say less.

OLD_ETCD = "docs/security.md: etcd before 3.6.11 checks no permissions there"


@pytest.fixture(scope="module")
def old_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd of the tests' own, since they leave it open to everybody."""
    with running_etcd(tmp_path_factory.mktemp("old") / "etcd") as server:
        turn_auth_on(server)
        with Kvs.connect(server.endpoint()) as root:
            root.identities.add(MINE)
            root.put(names.finish_key(OTHERS), "FALSE")
        yield server


@pytest.mark.xfail(strict=True, reason=OLD_ETCD, raises=pytest.fail.Exception)
def test_a_transaction_in_a_transaction_is_refused_too(old_etcd: EtcdServer) -> None:
    with Kvs.connect(old_etcd.endpoint(names.etcd_user(MINE))) as job:
        messages = job._rpc
        put = messages.PutRequest(key=names.finish_key(OTHERS).encode(), value=b"0")
        inner = messages.TxnRequest(success=[messages.RequestOp(request_put=put)])
        outer = messages.TxnRequest(success=[messages.RequestOp(request_txn=inner)])
        with pytest.raises(RefusedError, match=DENIED):
            job._channel.call("transaction", job._channel.kv.Txn, outer)


@pytest.mark.xfail(strict=True, reason=OLD_ETCD, raises=pytest.fail.Exception)
def test_the_history_is_not_a_job_s_to_delete(old_etcd: EtcdServer) -> None:
    with Kvs.connect(old_etcd.endpoint(names.etcd_user(MINE))) as job:
        revision = job.get_prefix(names.job_prefix(MINE)).revision
        request = job._rpc.CompactionRequest(revision=revision)
        with pytest.raises(RefusedError, match=DENIED):
            job._channel.call("compact", job._channel.kv.Compact, request)


@pytest.mark.xfail(strict=True, reason=OLD_ETCD, raises=pytest.fail.Exception)
def test_an_alarm_is_the_administrator_s_to_raise(old_etcd: EtcdServer) -> None:
    """Last: while the alarm is on, etcd 3.4 checks no permissions of deletions and of users either."""
    with Kvs.connect(old_etcd.endpoint("nobody")) as nobody:
        request = nobody._rpc.AlarmRequest(action=1, memberID=1, alarm=1)
        with pytest.raises(RefusedError, match=r"denied|not found"):
            nobody._channel.call("raise an alarm", nobody._channel.stub("Maintenance").Alarm, request)
