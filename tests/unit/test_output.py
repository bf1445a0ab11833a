# SPDX-License-Identifier: GPL-3.0-or-later
"""COMMAND's output on its way: nothing lost, nothing twice, whoever reads or doesn't."""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path

import pytest
from dockerjob.broker.output import Output
from dockerjob_core.container import LOG_ENTRY_BYTES


class Reader:
    """Collects what is written to a pipe."""

    def __init__(self) -> None:
        self._source, self.target = os.pipe()
        self._parts: list[bytes] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while part := os.read(self._source, 65536):
            self._parts.append(part)

    def text(self) -> bytes:
        os.close(self.target)
        self._thread.join()
        os.close(self._source)
        return b"".join(self._parts)


@pytest.fixture
def readers() -> tuple[Reader, Reader]:
    return Reader(), Reader()


def follow(readers: tuple[Reader, Reader], code: str) -> tuple[Output, queue.SimpleQueue[int]]:
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    targets = readers[0].target, readers[1].target
    return Output([sys.executable, "-c", code], lambda status, _: ended.put(status), targets), ended


def test_both_streams_arrive_whole_and_the_end_is_told(readers: tuple[Reader, Reader]) -> None:
    code = "import os\nfor n in range(300): os.write(1, bytes([n % 256]) * 9999)\nos.write(2, b'err')"
    output, ended = follow(readers, code)
    assert output.wait(10)
    assert ended.get(timeout=5) == 0
    output.complete([b"", b"err"])
    assert readers[0].text() == b"".join(bytes([n % 256]) * 9999 for n in range(300))
    assert readers[1].text() == b"err"


@pytest.mark.parametrize(
    ("came", "end", "whole"),
    [
        (b"one\\n", b"one\ntwo", b"one\ntwo"),
        (b"one\\ntwo", b"one\ntwo", b"one\ntwo"),
        (b"one\\ntwo\\n", b"one\ntwo\n", b"one\ntwo\n"),
        (b"", b"", b""),
        (b"", b"x", b"x"),
        (b"x\\n", b"x", b"x\nx"),
    ],
)
def test_only_what_is_missing_is_completed(
    readers: tuple[Reader, Reader], came: bytes, end: bytes, whole: bytes
) -> None:
    output, _ = follow(readers, f"import os; os.write(1, b'{came.decode()}')")
    assert output.wait(10)
    output.complete([end, b""])
    assert (readers[0].text(), readers[1].text()) == (whole, b"")


def test_the_piece_of_a_long_line_that_is_missing_is_completed(readers: tuple[Reader, Reader]) -> None:
    line = os.urandom(16384).replace(b"\n", b"x")
    output, _ = follow(readers, f"import os; os.write(1, {b'first' + line!r})")
    assert output.wait(10)
    output.complete([line + b"tail", b""])
    assert (readers[0].text(), readers[1].text()) == (b"first" + line + b"tail", b"")


def test_a_reader_that_is_gone_does_not_hold_the_end_up() -> None:
    source, target = os.pipe()
    os.close(source)
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    output = Output(
        [sys.executable, "-c", "print('x' * 10**6)"], lambda *end: ended.put(end[0]), (target, target)
    )
    assert output.wait(10)
    assert ended.get(timeout=5) == 0
    os.close(target)


def test_waiting_ends_when_nothing_moves(readers: tuple[Reader, Reader]) -> None:
    output, _ = follow(readers, "import time; time.sleep(60)")
    assert not output.wait(0.2)
    output.stop()
    assert output.wait(10)
    for reader in readers:
        reader.text()


def test_a_follower_that_fails_is_started_again_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the Docker daemon is restarted: the log begins anew, its first part has passed."""
    monkeypatch.setattr("dockerjob.broker.output.RESTART_AFTER", 0.0)
    script = (
        f"n=$(cat {tmp_path}/n 2>/dev/null || echo 1); echo $((n + 1)) >{tmp_path}/n; "
        "seq $((n * 1000)); seq $((n * 10)) >&2; [ $n = 3 ] && exit 0; "
        "echo 'error from daemon in stream: Error grabbing logs: unexpected EOF' >&2; exit 1"
    )
    out, err = Reader(), Reader()
    ends: queue.SimpleQueue[int] = queue.SimpleQueue()
    output = Output(["sh", "-c", script], lambda status, _: ends.put(status), (out.target, err.target))
    assert ends.get(timeout=30) == 0
    assert output.wait(5)
    assert out.text().split() == [b"%d" % n for n in range(1, 3001)]
    said = [line for line in err.text().splitlines() if not line.startswith(b"error from daemon")]
    assert said == [b"%d" % n for n in range(1, 31)]


@pytest.mark.parametrize(
    ("script", "limit", "too_much"),
    [
        ("printf 'x%.0s' $(seq 1000)", 1000, False),
        ("printf 'x%.0s' $(seq 1001)", 1000, True),
        # Each line takes more of dockerd's log than it has text.
        ("yes '' | head -n 20", 20 * (1 + LOG_ENTRY_BYTES), False),
        ("yes '' | head -n 21", 20 * (1 + LOG_ENTRY_BYTES), True),
        ("exec yes", 1 << 20, True),
        ("exec yes >&2", 1 << 20, True),
    ],
)
def test_more_than_the_limit_stops_the_follower_and_is_told(
    readers: tuple[Reader, Reader], script: str, limit: int, too_much: bool
) -> None:
    ends: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()
    targets = readers[0].target, readers[1].target
    output = Output(["bash", "-c", script], lambda *end: ends.put(end), targets, limit)
    assert ends.get(timeout=20)[1] == too_much
    assert output.too_much == too_much
    assert sum(len(reader.text()) for reader in readers) < limit + (1 << 18)
