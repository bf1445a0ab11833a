# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A watch on a prefix, one gRPC stream each.

etcd3's own watcher shares a stream among all watches and, when the connection is lost,
reconnects in a loop in its thread, without the watches; its iterator then waits for
ever.  Here a lost connection is an error of the watch, and the caller reads and watches anew.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .errors import KvsError
from .kvs_channel import Channel, RefusedError, key_text, prefix_range

REQUIRE_LEADER = (("hasleader", "true"),)
"""Makes a member that lost its leader end the watch, which would else stay silent."""


@dataclass(frozen=True)
class Event:
    """One change of a key; a deletion has no value and no lease."""

    type: Literal["put", "delete"]
    key: str
    value: bytes
    lease: int
    mod_revision: int = 0


class Watch:
    """The changes under a prefix, in order; iterate, or call :meth:`next` with a timeout."""

    def __init__(self, channel: Channel, prefix: str, start_revision: int) -> None:
        """Start the watch and wait until etcd has accepted it."""
        import grpc  # type: ignore[import-untyped]  # grpcio has no type information

        self._grpc_error: type[Exception] = grpc.RpcError
        self._channel = channel
        self._what = f"watch {prefix}*"
        self._events: deque[Event] = deque()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._over = threading.Event()
        self._failure: KvsError | None = None
        create = channel.rpc.WatchCreateRequest(**prefix_range(prefix), start_revision=start_revision)
        self._stream = channel.stub("Watch").Watch(self._requests(create), metadata=REQUIRE_LEADER)
        threading.Thread(target=self._read, name=self._what, daemon=True).start()
        if not self._take(channel.endpoint.timeout):
            self.cancel()
            raise KvsError(f"etcd at {channel.endpoint.target}: {self._what}: no answer")

    def __iter__(self) -> Iterator[Event]:
        """Yield events until the watch is cancelled; a lost connection raises ``KvsError``."""
        while (event := self.next(None)) is not None:
            yield event

    def next(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event.

        Args:
            timeout: Seconds to wait; None: for ever.

        Returns:
            The event; None if none came in time or the watch was cancelled.

        Raises:
            KvsError: The connection was lost or etcd ended the watch.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while not self._events:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not self._take(left):
                return None
        return self._events.popleft()

    @property
    def over(self) -> bool:
        """Whether the watch was cancelled or its connection is lost; events may still be left."""
        return self._over.is_set()

    def cancel(self) -> None:
        """End the watch, also for a thread that waits in it; may be called again."""
        if not self._cancelled.is_set():
            self._cancelled.set()
            self._over.set()
            self._stream.cancel()
            self._answers.put(None)

    def _requests(self, create: Any) -> Iterator[Any]:
        """Send the one request, then keep the stream open in our direction."""
        yield self._channel.rpc.WatchRequest(create_request=create)
        self._over.wait()

    def _read(self) -> None:
        """Carry answers from the stream to the queue, in a thread, until the stream ends."""
        try:
            for answer in self._stream:
                self._answers.put(answer)
            self._answers.put(
                KvsError(f"etcd at {self._channel.endpoint.target}: {self._what}: closed by etcd")
            )
        except self._grpc_error as error:
            self._answers.put(self._channel.error(self._what, error))
        finally:
            self._over.set()

    def _take(self, timeout: float | None) -> bool:
        """Take one answer of etcd and keep its events; say whether there was one."""
        if self._cancelled.is_set():
            return False
        if self._failure:
            raise self._failure
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            return False
        if self._cancelled.is_set():
            return False
        self._failure = answer if isinstance(answer, KvsError) else self._refusal(answer)
        if self._failure:
            raise self._failure
        self._events.extend(
            Event(
                "delete" if event.type == event.DELETE else "put",
                key_text(event.kv.key),
                event.kv.value,
                event.kv.lease,
                event.kv.mod_revision,
            )
            for event in answer.events
        )
        return True

    def _refusal(self, answer: Any) -> KvsError | None:
        """Return the error in *answer*, if etcd says in it that the watch is over."""
        if answer.compact_revision:
            reason = f"revision compacted away, the oldest is {answer.compact_revision}: read the keys again"
        elif answer.canceled:
            reason = answer.cancel_reason or "cancelled by etcd"
        else:
            return None
        return RefusedError(f"etcd at {self._channel.endpoint.target}: {self._what}: {reason}", reason)
