# SPDX-License-Identifier: GPL-3.0-or-later
"""The broker's own process: what it takes from its caller, and what it keeps of what a job says."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from dockerjob.broker.inbox import MOST_SIGNALS, Inbox, Signalled, TreeChanged, WatchFailed
from dockerjob.broker.output import write_patiently
from dockerjob.broker.process import IGNORED
from dockerjob.broker.watched import LONGEST_VALUE, WatchedTree
from dockerjob_core.errors import DockerjobError, KvsError
from dockerjob_core.kvs import Event

SETTLE = """
import signal, sys
from dockerjob.broker.process import settle
settle()
print(sorted(int(n) for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN))
print(sorted(int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())))
print(signal.getitimer(signal.ITIMER_REAL)[0])
"""


class TestCaller:
    """Signals, timers and limits are the caller's to prepare before sudo."""

    def test_no_signal_and_no_timer_is_inherited(self) -> None:
        def hostile() -> None:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
            signal.setitimer(signal.ITIMER_REAL, 60)

        done = subprocess.run(
            [sys.executable, "-c", SETTLE], capture_output=True, text=True, check=True, preexec_fn=hostile
        )
        assert done.stdout.splitlines() == [str(sorted(int(n) for n in IGNORED)), "[]", "0.0"]

    @pytest.mark.parametrize(
        ("option", "name"),
        [("--fsize=1024", "-f"), ("--cpu=7", "-t"), ("--nofile=30", "-n"), ("--nproc=9", "-u")],
    )
    def test_limits_that_would_stop_it_half_way_are_refused(self, option: str, name: str) -> None:
        code = "from dockerjob.broker.process import check_limits; check_limits()"
        done = subprocess.run(
            ["prlimit", option, sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert f"RequestError: the limit of this shell (ulimit {name}," in done.stderr

    def test_soft_limits_are_raised(self) -> None:
        code = (
            "import resource as r; from dockerjob.broker.process import check_limits; check_limits();"
            "print(r.getrlimit(r.RLIMIT_CPU), r.getrlimit(r.RLIMIT_NOFILE)[0] > 64)"
        )
        argv = ["prlimit", "--cpu=7:", "--nofile=64:", sys.executable, "-c", code]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert done.stdout == "(-1, -1) True\n"


class TestInbox:
    @pytest.fixture
    def inbox(self) -> Inbox:
        return Inbox()

    def test_a_flood_of_text_and_signals_is_no_memory(self, inbox: Inbox) -> None:
        line = json.dumps({"signal": int(signal.SIGUSR1)}).encode() + b"\n"
        inbox.listen(io.BytesIO(b"x" * 10_000_000 + b"\n" + line * 5 * MOST_SIGNALS))
        while inbox.ended_by is None:
            time.sleep(0.01)
        taken = 0
        while inbox.get(0):
            taken += 1
        assert taken <= MOST_SIGNALS + 1

    @pytest.mark.parametrize("text", [b"[" * 200, b'{"signal": "15"}', b'{"signal": 1.5}', b"{}", b"\xff"])
    def test_what_is_no_signal_is_passed_over(self, inbox: Inbox, text: bytes) -> None:
        inbox.listen(io.BytesIO(text + b'\n{"signal": 15}\n'))
        assert inbox.get(5) == Signalled(15)

    def test_only_the_wanted_keys_are_told_of(self, inbox: Inbox) -> None:
        events = [Event("put", key, b"x", 0) for key in ("/7/other", "/7/FINISH", "/7/\\xff")]

        class Watch:
            """Gives the events, then fails."""

            def __init__(self) -> None:
                self._events: Iterator[Event] = iter(events)

            def next(self, _timeout: float | None) -> Event | None:
                for event in self._events:
                    return event
                raise KvsError("lost")

        inbox.watch(Watch(), {"/7/FINISH"})  # type: ignore[arg-type]
        assert inbox.get(5) == TreeChanged(events[1])
        assert inbox.get(5) == WatchFailed("lost")


class TestWatchedTree:
    @pytest.fixture
    def tree(self) -> WatchedTree:
        return WatchedTree("7", ["node1", "node2"])

    def test_nodes_that_are_not_ready_are_named(self, tree: WatchedTree) -> None:
        tree.take("/7/7_node_0/READY", b"True")
        tree.take("/7/7_node_1/READY", b"true")
        assert (tree.ready, tree.waiting()) == (False, ["7_node_1 on node2"])
        tree.take("/7/7_node_1/READY", b"True")
        assert tree.ready

    @pytest.mark.parametrize(("value", "status"), [(b"FALSE", None), (b"0", 0), (b"137", 137), (b"255", 255)])
    def test_what_the_agent_writes_is_a_status(
        self, tree: WatchedTree, value: bytes, status: int | None
    ) -> None:
        assert tree.status() is None
        tree.take("/7/FINISH", value)
        assert tree.status() == status

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"abc",
            b"-5",
            b" 7 ",
            b"1_0",
            b"256",
            b"9" * 5000,
            "\u0667".encode(),
            b"\xff",
            b"0\n",
            b"False",
        ],
    )
    def test_what_it_does_not_write_is_none(self, tree: WatchedTree, value: bytes) -> None:
        tree.take("/7/FINISH", value)
        with pytest.raises(DockerjobError, match="no exit status") as error:
            tree.status()
        assert len(str(error.value)) < 5 * LONGEST_VALUE + 100

    def test_other_keys_are_not_kept(self, tree: WatchedTree) -> None:
        tree.take("/7/FINISH2", b"abc")
        assert tree.status() is None


class TestReader:
    """Who reads what is said at the end, or doesn't."""

    def test_nobody_reads(self) -> None:
        source, target = os.pipe()
        begin = time.monotonic()
        assert not write_patiently(target, b"x" * 1_000_000, 0.2)
        assert time.monotonic() - begin < 2
        os.close(source)
        assert not write_patiently(target, b"x", 0.2)
        os.close(target)

    def test_somebody_reads_slowly(self) -> None:
        source, target = os.pipe()
        data = os.urandom(40 * select.PIPE_BUF + 17)
        parts: list[bytes] = []

        def read() -> None:
            while part := os.read(source, 3000):
                parts.append(part)
                time.sleep(0.001)

        reader = threading.Thread(target=read)
        reader.start()
        assert write_patiently(target, data, 5)
        os.close(target)
        reader.join()
        os.close(source)
        assert b"".join(parts) == data
