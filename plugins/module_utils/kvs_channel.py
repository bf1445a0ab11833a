# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection to etcd: one channel, one way to call, one place that turns errors into words.

etcd3 brings the connection and the messages; this file adds what its client lacks: a
deadline and a retry rule for every call, and etcd's own text in every error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, TypedDict

from .errors import KvsError

AUTH_STORE_OLD = "etcdserver: revision of auth store is old"
"""Said to a request that crossed a change of users or roles; it was not applied."""

NO_QUORUM = "context deadline exceeded"
"""How etcd 3.4 says, without a code of its own, that there was no leader to ask about the rights of a request."""

NEVER_SENT = "failed to connect to all addresses"
"""How gRPC's message begins when a call found no connection, so nothing was sent."""

CHANNEL_OPTIONS = (
    # A member or its relay is back within a second or not at all: no minute of back-off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 2000),  # despite its name also the limit of one attempt
    # Pings find a dead peer under a silent watch; etcd refuses them oftener than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # An answer is as large as what a job has written under its prefix; ours are below 1 MB.
    ("grpc.max_receive_message_length", 16 << 20),
)


@dataclass(frozen=True)
class Endpoint:
    """Where etcd is and who we are to it: the client certificate's common name is an etcd user.

    Args:
        target: ``unix:/path`` (a host's relay) or ``host:port``.
        ca: File with the certificate authority of etcd's servers.
        cert: File with the client certificate.
        key: File with its private key.
        server_name: Name that every member's certificate carries.
        timeout: Seconds a call may take, retries included.
    """

    target: str
    ca: str
    cert: str
    key: str
    server_name: str = "etcd"
    timeout: float = 10.0


class RefusedError(KvsError):
    """etcd answered, and the answer was no; *reason* is its own text."""

    def __init__(self, message: str, reason: str) -> None:
        """Keep etcd's text beside the message for people."""
        super().__init__(message)
        self.reason = reason


@cache
def etcd3() -> ModuleType:
    """Import etcd3 on first use: it costs 0.2 s, and a host may lack it."""
    import etcd3  # type: ignore[import-untyped]  # etcd3 0.12.0 has no type information

    return etcd3  # type: ignore[no-any-return]


class PrefixRange(TypedDict):
    """The two fields of etcd's requests that say which keys are meant."""

    key: bytes
    range_end: bytes


def prefix_range(prefix: str) -> PrefixRange:
    """Return the fields that mean: all keys that begin with *prefix*; if it is empty, every key."""
    key = prefix.encode()
    if not key:
        return {"key": b"\0", "range_end": b"\0"}
    return {"key": key, "range_end": etcd3().utils.increment_last_byte(key)}


def key_text(key: bytes) -> str:
    """Return a key as text; a job may make keys that are none, and those are nobody's."""
    return key.decode(errors="backslashreplace")


class Channel:
    """One gRPC channel to etcd; calls go through :meth:`call`."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Read the certificate files and prepare the channel; nothing is sent yet."""
        self.endpoint = endpoint
        host, _, port = endpoint.target.rpartition(":")
        if endpoint.target.startswith("unix:"):
            host, port = "unix", endpoint.target.removeprefix("unix:")
        if not host or not port:
            raise KvsError(f"etcd target {endpoint.target!r} is neither unix:/path nor host:port")
        options = [("grpc.ssl_target_name_override", endpoint.server_name), *CHANNEL_OPTIONS]
        try:
            self._client = etcd3().client(
                host, port, endpoint.ca, endpoint.key, endpoint.cert, endpoint.timeout, grpc_options=options
            )
        except OSError as error:
            raise KvsError(f"etcd: cannot read {error.filename}: {error.strerror}") from error
        self.rpc = etcd3().etcdrpc
        self.kv = self._client.kvstub
        self.lease = self._client.leasestub

    def stub(self, name: str) -> Any:
        """Make a stub that etcd3's client does not keep (``Auth``, ``Watch``)."""
        return getattr(self.rpc, name + "Stub")(self._client.channel)

    def close(self) -> None:
        """Close the connection; calls under way end with an error."""
        self._client.close()

    def call(self, what: str, method: Callable[..., Any], request: Any, repeatable: bool = False) -> Any:
        """Call *method*; retry what was certainly not applied, until the timeout.

        Args:
            what: The call in words, for the error message.
            method: A method of a stub.
            request: Its request message.
            repeatable: The call may be sent twice, so a connection lost under it is retried too.
        """
        import grpc  # type: ignore[import-untyped]  # grpcio has no type information
        import tenacity

        def retriable(error: BaseException) -> bool:
            return isinstance(error, grpc.RpcError) and _retriable(error, repeatable)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(retriable),
            wait=tenacity.wait_random_exponential(multiplier=0.004, max=0.2),
            stop=tenacity.stop_after_delay(self.endpoint.timeout),
            reraise=True,
        )
        try:
            return retrying(method, request, timeout=self.endpoint.timeout)
        except grpc.RpcError as error:
            raise self.error(what, error) from error

    def error(self, what: str, error: Any) -> KvsError:
        """Turn gRPC's *error* into one line: where, what, and what etcd said."""
        code, reason = error.code().name, " ".join(str(error.details()).split())
        line = f"etcd at {self.endpoint.target}: {what}: {reason[:300]}"
        if code == "UNAVAILABLE":
            return KvsError(f"{line} (is etcd, or this host's relay to it, running?)")
        if code == "DEADLINE_EXCEEDED" or reason == NO_QUORUM:
            return KvsError(f"{line} (no answer in {self.endpoint.timeout:g} s; has etcd its quorum?)")
        return RefusedError(line, reason)


def _retriable(error: Any, repeatable: bool) -> bool:
    """Say whether the failed call may be made again."""
    details = str(error.details())
    if error.code().name == "UNAVAILABLE":
        return repeatable or details.startswith(NEVER_SENT)
    return details == AUTH_STORE_OLD
