# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The key-value store: the one typed layer between the project and etcd's v3 interface.

Everything raises :class:`~.errors.KvsError` with one line for people.  Keys come from
:mod:`.names`; nothing here builds one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from .kvs_auth import Auth
from .kvs_channel import Channel, Endpoint, RefusedError, key_text, prefix_range
from .kvs_identities import JobIdentities
from .kvs_watch import Event, Watch

__all__ = ["Endpoint", "Event", "KeyValue", "Kvs", "RefusedError", "Snapshot", "Watch"]

LEASE_GONE = "etcdserver: requested lease not found"


@dataclass(frozen=True)
class KeyValue:
    """A key as it was at the revision it was read at; lease 0 is no lease."""

    key: str
    value: bytes
    lease: int
    mod_revision: int
    create_revision: int


@dataclass(frozen=True)
class Snapshot:
    """The keys under a prefix at *revision*; a watch from ``revision + 1`` misses nothing."""

    revision: int
    items: tuple[KeyValue, ...]


class Kvs:
    """A connection to etcd; use it as a context manager, or call :meth:`close`."""

    def __init__(self, channel: Channel, identities: JobIdentities) -> None:
        """Use *channel*; see :meth:`connect`."""
        self._channel = channel
        self._rpc = channel.rpc
        self._watches: list[Watch] = []
        self.auth = Auth(channel)
        self.identities = identities

    @classmethod
    def connect(cls, endpoint: Endpoint, administrator: Endpoint | None = None) -> Kvs:
        """Prepare a connection; the first call opens it.

        Args:
            endpoint: Who we are for everything but :attr:`identities`.
            administrator: Who we are for :attr:`identities`, which takes the role ``root``; without
                it the same as for all else.
        """
        return cls(Channel(endpoint), JobIdentities(administrator or endpoint))

    def close(self) -> None:
        """Cancel the watches and close the connection."""
        for watch in self._watches:
            watch.cancel()
        self._channel.close()

    def __enter__(self) -> Kvs:
        """Enter the context; the connection is closed at its end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    # -- keys ---------------------------------------------------------------------------

    def get(self, key: str) -> KeyValue | None:
        """Read *key*, or return None if there is no such key."""
        items = self._range(f"get {key}", key=key.encode()).items
        return items[0] if items else None

    def get_prefix(self, prefix: str) -> Snapshot:
        """Read all keys that begin with *prefix*, at one revision."""
        return self._range(f"get {prefix}*", **prefix_range(prefix))

    def put(self, key: str, value: bytes | str, lease: int = 0) -> None:
        """Set *key*; with a lease it goes when the lease ends."""
        request = self._rpc.PutRequest(key=key.encode(), value=_bytes(value), lease=lease)
        self._channel.call(f"put {key}", self._channel.kv.Put, request, repeatable=True)

    def delete(self, key: str) -> bool:
        """Delete *key*; say whether it existed."""
        return self._delete(f"delete {key}", key=key.encode()) > 0

    def delete_prefix(self, prefix: str) -> int:
        """Delete all keys that begin with *prefix*; return how many there were."""
        return self._delete(f"delete {prefix}*", **prefix_range(prefix))

    def transact(
        self,
        guards: Mapping[str, bytes | None],
        puts: Mapping[str, bytes],
        deletes: Iterable[str] = (),
        lease: int = 0,
    ) -> bool:
        """Write all of it or nothing, in one transaction.

        It is not repeated when the connection breaks under it, for it may have been applied:
        after such an error read what you wrote.

        Args:
            guards: What each key must hold now; None: it must not exist.
            puts: The keys to set.
            deletes: The keys to delete.
            lease: Lease of the keys that are set.

        Returns:
            Whether every guard held and the writes were made.
        """
        operations = [
            self._rpc.RequestOp(request_put=self._rpc.PutRequest(key=k.encode(), value=v, lease=lease))
            for k, v in puts.items()
        ] + [
            self._rpc.RequestOp(request_delete_range=self._rpc.DeleteRangeRequest(key=k.encode()))
            for k in deletes
        ]
        request = self._rpc.TxnRequest(
            compare=[self._guard(key, value) for key, value in guards.items()], success=operations
        )
        what = f"transaction on {next(iter([*puts, *guards]), 'nothing')} and others"
        return bool(self._channel.call(what, self._channel.kv.Txn, request).succeeded)

    def create_if_absent(self, items: Mapping[str, bytes], lease: int = 0) -> bool:
        """Create all *items* in one transaction, or none if one of the keys exists."""
        return self.transact(dict.fromkeys(items), items, lease=lease)

    def watch_prefix(self, prefix: str, start_revision: int) -> Watch:
        """Watch the keys that begin with *prefix*, from *start_revision* on."""
        watch = Watch(self._channel, prefix, start_revision)
        self._watches = [*(other for other in self._watches if not other.over), watch]
        return watch

    # -- leases -------------------------------------------------------------------------

    def lease_grant(self, ttl: int) -> int:
        """Grant a lease of *ttl* seconds and return its id."""
        request = self._rpc.LeaseGrantRequest(TTL=ttl)
        return int(self._channel.call("grant a lease", self._channel.lease.LeaseGrant, request).ID)

    def lease_keepalive(self, lease: int) -> int:
        """Renew *lease* once; return the seconds it now has, 0 if it is gone."""

        def once(request: Any, timeout: float) -> int:
            answers = self._channel.lease.LeaseKeepAlive(iter([request]), timeout=timeout)
            return next((int(answer.TTL) for answer in answers), 0)

        request = self._rpc.LeaseKeepAliveRequest(ID=lease)
        return int(self._channel.call(f"renew lease {lease:x}", once, request, repeatable=True))

    def lease_remaining(self, lease: int) -> int:
        """Return the seconds that *lease* has left, 0 if it is gone."""
        request = self._rpc.LeaseTimeToLiveRequest(ID=lease)
        what = f"look at lease {lease:x}"
        answer = self._channel.call(what, self._channel.lease.LeaseTimeToLive, request, repeatable=True)
        return max(0, int(answer.TTL))

    def lease_revoke(self, lease: int) -> None:
        """End *lease* and delete its keys; a lease that is gone is no error."""
        request = self._rpc.LeaseRevokeRequest(ID=lease)
        try:
            self._channel.call(
                f"revoke lease {lease:x}", self._channel.lease.LeaseRevoke, request, repeatable=True
            )
        except RefusedError as error:
            if error.reason != LEASE_GONE:
                raise

    # -- the cluster --------------------------------------------------------------------

    def alarms(self) -> list[str]:
        """Return the alarms that etcd has raised, ``NOSPACE`` or ``CORRUPT``: writes fail then."""
        request = self._rpc.AlarmRequest(action=self._rpc.AlarmRequest.GET)
        maintenance = self._channel.stub("Maintenance")
        answer = self._channel.call("list alarms", maintenance.Alarm, request, repeatable=True)
        return [self._rpc.AlarmType.Name(alarm.alarm) for alarm in answer.alarms]

    # -- what the above share -----------------------------------------------------------

    def _range(self, what: str, **fields: bytes) -> Snapshot:
        request = self._rpc.RangeRequest(**fields)
        response = self._channel.call(what, self._channel.kv.Range, request, repeatable=True)
        return Snapshot(
            int(response.header.revision),
            tuple(
                KeyValue(key_text(kv.key), kv.value, kv.lease, kv.mod_revision, kv.create_revision)
                for kv in response.kvs
            ),
        )

    def _delete(self, what: str, **fields: bytes) -> int:
        request = self._rpc.DeleteRangeRequest(**fields)
        return int(self._channel.call(what, self._channel.kv.DeleteRange, request, repeatable=True).deleted)

    def _guard(self, key: str, value: bytes | None) -> Any:
        compare = self._rpc.Compare
        if value is None:
            return compare(result=compare.EQUAL, target=compare.CREATE, key=key.encode(), create_revision=0)
        return compare(result=compare.EQUAL, target=compare.VALUE, key=key.encode(), value=value)


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value
