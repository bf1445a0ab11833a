# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The key-value layer against a real etcd."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from dockerjob_core import names
from dockerjob_core.errors import KvsError
from dockerjob_core.kvs import Kvs, RefusedError
from dockerjob_core.kvs_auth import AuthState, Permission, Step, plan, plan_removal
from etcd_fixtures import EtcdServer, running_etcd

pytestmark = pytest.mark.integration


@pytest.fixture
def prefix(kvs: Kvs, job_id: str) -> Iterator[str]:
    """A prefix of the test's own, empty again at its end."""
    prefix = names.job_prefix(job_id)
    yield prefix
    kvs.delete_prefix(prefix)


# -- keys -------------------------------------------------------------------------------


def test_put_get_delete(kvs: Kvs, prefix: str) -> None:
    assert kvs.get(prefix + "a") is None
    kvs.put(prefix + "a", "text")
    kvs.put(prefix + "b", b"\x00\xff")
    found = kvs.get(prefix + "a")
    assert found is not None
    assert (found.key, found.value, found.lease) == (prefix + "a", b"text", 0)
    assert [(item.key, item.value) for item in kvs.get_prefix(prefix).items] == [
        (prefix + "a", b"text"),
        (prefix + "b", b"\x00\xff"),
    ]
    assert kvs.delete(prefix + "a")
    assert not kvs.delete(prefix + "a")
    assert kvs.delete_prefix(prefix) == 1


def test_a_prefix_ends_where_it_says(kvs: Kvs, prefix: str) -> None:
    neighbour = prefix.rstrip("/") + "0/x"  # /100/ and /1000/
    kvs.put(neighbour, "mine")
    kvs.put(prefix + "x", "yours")
    assert kvs.delete_prefix(prefix) == 1
    assert kvs.delete(neighbour)


def test_create_if_absent_is_all_or_nothing(kvs: Kvs, prefix: str) -> None:
    assert kvs.create_if_absent({prefix + "a": b"1", prefix + "b": b"1"})
    assert not kvs.create_if_absent({prefix + "b": b"2", prefix + "c": b"2"})
    assert [item.value for item in kvs.get_prefix(prefix).items] == [b"1", b"1"]


def test_a_transaction_holds_to_its_guards(kvs: Kvs, prefix: str) -> None:
    kvs.put(prefix + "a", "1")
    assert not kvs.transact({prefix + "a": b"2"}, {prefix + "b": b""}, [prefix + "a"])
    assert not kvs.transact({prefix + "nothing": b""}, {prefix + "b": b""})
    assert kvs.transact({prefix + "a": b"1", prefix + "b": None}, {prefix + "b": b"3"}, [prefix + "a"])
    assert [(item.key, item.value) for item in kvs.get_prefix(prefix).items] == [(prefix + "b", b"3")]


# -- watches ----------------------------------------------------------------------------


def test_a_watch_misses_nothing_since_its_revision(kvs: Kvs, prefix: str) -> None:
    before = kvs.get_prefix(prefix).revision
    lease = kvs.lease_grant(60)
    kvs.put(prefix + "a", "1", lease)
    watch = kvs.watch_prefix(prefix, before + 1)
    kvs.put(prefix + "b", "2")
    kvs.delete(prefix + "b")
    events = [watch.next(5) for _ in range(3)]
    kvs.lease_revoke(lease)
    events.append(watch.next(5))
    assert [(e.type, e.key, e.value, e.lease) for e in events if e] == [
        ("put", prefix + "a", b"1", lease),
        ("put", prefix + "b", b"2", 0),
        ("delete", prefix + "b", b"", 0),
        ("delete", prefix + "a", b"", 0),
    ]
    assert watch.next(0) is None
    assert watch.next(0.05) is None
    watch.cancel()


def test_cancel_ends_a_watch_that_waits(kvs: Kvs, prefix: str) -> None:
    watch = kvs.watch_prefix(prefix, kvs.get_prefix(prefix).revision + 1)
    timer = threading.Timer(0.1, watch.cancel)
    timer.start()
    assert list(watch) == []
    assert watch.over
    watch.cancel()
    timer.join()


def test_close_ends_the_watches(etcd: EtcdServer, prefix: str) -> None:
    with Kvs.connect(etcd.endpoint()) as own:
        watch = own.watch_prefix(prefix, 1)
    assert watch.next(5) is None


def test_a_lost_connection_ends_the_watch_and_a_new_one_resumes(tmp_path: Path) -> None:
    with running_etcd(tmp_path / "etcd") as server, Kvs.connect(server.endpoint()) as kvs:
        revision = kvs.get_prefix("/1/").revision
        watch = kvs.watch_prefix("/1/", revision + 1)
        server.stop()
        with pytest.raises(KvsError, match="watch /1/"):
            watch.next(20)
        assert watch.over
        with pytest.raises(KvsError):
            watch.next(0)  # and says so again, rather than to wait for ever
        server.start()
        kvs.put("/1/a", "1")
        event = kvs.watch_prefix("/1/", revision + 1).next(5)
        assert event is not None
        assert event.key == "/1/a"


def test_a_member_that_comes_back_in_time_is_no_error(tmp_path: Path) -> None:
    with running_etcd(tmp_path / "etcd") as server, Kvs.connect(server.endpoint(timeout=20)) as kvs:
        kvs.put("/1/a", "1")
        server.stop()
        restart = threading.Timer(0.5, server.start)
        restart.start()
        assert kvs.get("/1/a") is not None
        restart.join()


# -- leases -----------------------------------------------------------------------------


def test_keys_go_with_their_lease(kvs: Kvs, prefix: str) -> None:
    lease = kvs.lease_grant(60)
    kvs.put(prefix + "a", "1", lease)
    assert kvs.lease_keepalive(lease) == 60
    kvs.lease_revoke(lease)
    kvs.lease_revoke(lease)
    assert kvs.get(prefix + "a") is None
    assert kvs.lease_keepalive(lease) == 0
    with pytest.raises(RefusedError, match="requested lease not found"):
        kvs.put(prefix + "a", "1", lease)


# -- identities -------------------------------------------------------------------------


def test_an_identity_may_use_its_own_prefix_only(etcd: EtcdServer, kvs: Kvs, job_id: str) -> None:
    name, own = names.etcd_user(job_id), names.job_prefix(job_id)
    kvs.identities.add(job_id)
    with Kvs.connect(etcd.endpoint(name)) as job:
        job.put(own + "a", "1")
        watch = job.watch_prefix(own, job.get_prefix(own).revision)
        event = watch.next(5)
        assert event is not None
        assert event.key == own + "a"
        for forbidden in (names.BOOKKEEPING + "/", own.rstrip("/") + "0/", "/1/", ""):
            with pytest.raises(KvsError, match="permission denied"):
                job.get_prefix(forbidden)
            with pytest.raises(KvsError, match="permission denied"):
                job.put(forbidden + "x", "1")
            with pytest.raises(KvsError, match="permission denied"):
                job.watch_prefix(forbidden, 1)
        with pytest.raises(KvsError, match="permission denied"):
            job.identities.add("1")
    assert name in kvs.auth.users()
    assert kvs.identities.remove(job_id)
    assert not kvs.identities.remove(job_id)
    with (
        Kvs.connect(etcd.endpoint(name)) as job,
        pytest.raises(KvsError, match=r"permission denied|user name"),
    ):
        job.get(own + "a")
    kvs.delete_prefix(own)


def test_an_unknown_common_name_may_do_nothing(etcd: EtcdServer) -> None:
    with Kvs.connect(etcd.endpoint("nobody")) as nobody, pytest.raises(KvsError, match=r"etcdserver: "):
        nobody.get("/dockerjob/x")


def test_an_identity_that_is_there_is_repaired(kvs: Kvs, job_id: str) -> None:
    name, own = names.etcd_user(job_id), names.job_prefix(job_id)
    wrong = Permission.on_prefix("/dockerjob/", "readwrite")
    kvs.auth.apply(plan(AuthState({name: frozenset()}, {name: frozenset([wrong])}), AuthState()))
    kvs.identities.add(job_id)
    kvs.identities.add(job_id)
    assert kvs.auth.read([name], [name]) == AuthState(
        {name: frozenset([name])}, {name: frozenset([Permission.on_prefix(own, "readwrite")])}
    )
    kvs.identities.remove(job_id)


def test_a_user_without_password_cannot_log_in_with_an_empty_one(
    etcd: EtcdServer, kvs: Kvs, job_id: str
) -> None:
    name = names.etcd_user(job_id)
    kvs.identities.add(job_id)
    with pytest.raises(RefusedError, match=r"authentication failed|invalid"):
        kvs.auth._call("Authenticate", "log in", name=name, password="")
    kvs.identities.remove(job_id)


def test_enabled_tells_on_from_off(kvs: Kvs, open_etcd: EtcdServer) -> None:
    assert kvs.auth.enabled()
    with Kvs.connect(open_etcd.endpoint()) as plain:
        assert not plain.auth.enabled()
        plain.identities.add("1")  # users can be made before authentication is on
        assert plain.identities.remove("1")


def test_writes_outlive_changes_of_the_auth_store(etcd: EtcdServer, job_id: str) -> None:
    """While identities are added, etcd fails other clients' writes; none of it may be seen."""

    def write(writer: int) -> int:
        with Kvs.connect(etcd.endpoint()) as own:
            for number in range(150):
                own.put(f"{names.job_prefix(job_id)}{writer}/{number}", "x")
        return writer

    def add_and_remove(offset: int) -> None:
        with Kvs.connect(etcd.endpoint()) as own:
            for number in range(900_000 + offset, 900_025 + offset):
                own.identities.add(str(number))
                own.identities.remove(str(number))

    with ThreadPoolExecutor() as threads:
        changes = [threads.submit(add_and_remove, offset) for offset in (0, 100)]
        writers = [threads.submit(write, number) for number in range(4)]
        assert [writer.result() for writer in writers] == [0, 1, 2, 3]
        assert [change.result() for change in changes] == [None, None]
    with Kvs.connect(etcd.endpoint()) as own:
        assert own.delete_prefix(names.job_prefix(job_id)) == 4 * 150


# -- errors -----------------------------------------------------------------------------


def test_no_etcd_is_one_clear_line_within_the_timeout(etcd: EtcdServer) -> None:
    gone = replace(etcd.endpoint(timeout=0.3), target="unix:/nowhere/etcd.sock")
    started = time.monotonic()
    with (
        Kvs.connect(gone) as kvs,
        pytest.raises(KvsError, match=r"^etcd at unix:/nowhere.*get /a.*running\?\)$"),
    ):
        kvs.get("/a")
    assert time.monotonic() - started < 3


def test_a_missing_certificate_is_named(etcd: EtcdServer) -> None:
    with pytest.raises(KvsError, match=r"cannot read /nowhere\.pem: No such file"):
        Kvs.connect(replace(etcd.endpoint(), cert="/nowhere.pem"))


@pytest.mark.parametrize("target", ["etcd", "unix:", ":2379"])
def test_a_target_has_to_say_where(etcd: EtcdServer, target: str) -> None:
    with pytest.raises(KvsError, match="neither unix:/path nor host:port"):
        Kvs.connect(replace(etcd.endpoint(), target=target))


def test_a_wrong_server_name_is_refused(etcd: EtcdServer) -> None:
    stranger = replace(etcd.endpoint(timeout=0.3), server_name="stranger")
    with Kvs.connect(stranger) as kvs, pytest.raises(KvsError, match="etcd at 127"):
        kvs.get("/a")


# -- the plan of users and roles --------------------------------------------------------

READ_A, WRITE_A = Permission.on_prefix("/a/", "read"), Permission.on_prefix("/a/", "readwrite")
READ_B = Permission.on_prefix("/b/", "read")


def test_plan_changes_what_differs_and_nothing_else() -> None:
    have = AuthState(
        {"u": frozenset({"old", "kept"}), "other": frozenset()}, {"r": frozenset({READ_A, READ_B})}
    )
    want = AuthState({"u": frozenset({"kept", "r"})}, {"r": frozenset({WRITE_A})})
    assert plan(want, have) == [
        Step("revoke", "r", permission=READ_B),
        Step("grant", "r", permission=WRITE_A),  # on the same prefix: etcd replaces the access
        Step("revoke_role", "u", "old"),
        Step("grant_role", "u", "r"),
    ]
    assert plan(have, have) == []


def test_plan_never_adds_the_role_root_which_is_built_in() -> None:
    want = AuthState({"root": frozenset({"root"})}, {"root": frozenset()})
    assert plan(want, AuthState()) == [Step("add_user", "root"), Step("grant_role", "root", "root")]


def test_plan_removal_takes_users_first() -> None:
    have = AuthState({"u": frozenset()}, {"r": frozenset()})
    assert plan_removal(["u", "gone"], ["r"], have) == [Step("delete_user", "u"), Step("delete_role", "r")]


def test_permissions_read_well() -> None:
    assert str(WRITE_A) == "readwrite /a/*"
    assert str(Permission(b"/a", b"", "read")) == "read /a"
    assert str(Permission(b"/a", b"/k", "write")) == "write [/a, /k)"
