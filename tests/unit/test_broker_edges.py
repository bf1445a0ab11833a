# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a user's processes reach into the broker: its standard input and error, its lock, FINISH."""

from __future__ import annotations

import io
import os
import pwd
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from dockerjob.broker import cli
from dockerjob.broker.identity import caller_uid
from dockerjob.broker.inbox import LONGEST_LINE, MOST_SIGNALS, Inbox, Signalled, signal_of
from dockerjob.broker.output import say
from dockerjob_core import jobtree
from dockerjob_core.errors import DiscoveryError, PolicyError, RequestError
from hypothesis import given
from hypothesis import strategies as st


def heard(data: bytes) -> list[int]:
    """Signals that the broker takes from *data*, until it sees the end of it."""
    inbox = Inbox()
    inbox.listen(io.BytesIO(data))
    numbers = []
    while isinstance(message := inbox.get(5), Signalled):
        numbers.append(message.number)
        if message.number == signal.SIGHUP:
            return numbers
    raise AssertionError("the broker did not notice that the wrapper is gone")


@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"\n\n",
        b"[" * 100_000 + b"\n",
        b'{"signal": ' * 5000 + b"\n",
        b"\xff\xfe\n",
        b'{"signal": 999}\n{"signal": -1}\n{"signal": "15"}\n{"signal": null}\n{"signal": [15]}\n{"signal": 1e400}\n',
        b'{"signal": ' + b"9" * 5000 + b"}\n",
        b"x" * (3 * LONGEST_LINE),
    ],
)
def test_the_end_of_the_wrapper_is_seen_after_any_noise(noise: bytes) -> None:
    assert heard(noise) == [signal.SIGHUP]
    assert heard(noise + b'\n{"signal": 15}\n') == [signal.SIGTERM, signal.SIGHUP]


def test_a_flood_of_signals_is_not_kept_and_hides_no_end() -> None:
    inbox = Inbox()
    for _ in range(100 * MOST_SIGNALS):
        inbox.put(Signalled(signal.SIGUSR1))
    inbox.put(Signalled(signal.SIGTERM))
    kept = 0
    while inbox.get(0):
        kept += 1
    assert kept == MOST_SIGNALS
    assert inbox.ended_by == signal.SIGTERM


@given(st.binary(max_size=200))
def test_a_line_of_the_wrappers_is_a_signal_or_nothing(line: bytes) -> None:
    assert signal_of(line) is None or signal_of(line) in signal.valid_signals()


@given(st.binary(max_size=12) | st.integers().map(lambda n: str(n).encode()))
def test_finish_is_an_exit_status_or_refused(value: bytes) -> None:
    try:
        status = jobtree.exit_status(value)
    except DiscoveryError:
        return
    assert 0 <= status <= 255
    assert value.isdigit()


@pytest.mark.parametrize(
    "value", [b"", b"-1", b"256", b" 1", b"1\n", b"0x1", b"1_0", b"\xd9\xa3", b"9" * 5000]
)
def test_what_is_no_exit_status(value: bytes) -> None:
    with pytest.raises(DiscoveryError, match="no exit status"):
        jobtree.exit_status(value)


@given(st.text(max_size=20))
def test_sudos_uid_is_a_number_or_refused(text: str) -> None:
    try:
        uid = caller_uid({"SUDO_UID": text})
    except PolicyError:
        return
    assert str(uid) == text.lstrip("0") or text.strip("0") == ""


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have the service account's home in *tmp_path*."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_dir=str(tmp_path)))
    yield tmp_path / "run"
    assert list((tmp_path / "run").iterdir()) == []


def test_a_claim_of_another_user_keeps_no_job_from_its_owner(account: Path) -> None:
    with (
        cli.job_directory("748", 2001) as one,
        cli.job_directory("748", 2002) as other,
        pytest.raises(RequestError, match="job 748 is already run by another wrapper on this host"),
        cli.job_directory("748", 2001),
    ):
        pass
    assert {path.parent for path in (one, other)} == {account}
    assert one != other


def test_a_full_standard_error_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        say("this can't be written")
        monkeypatch.undo()
        # The text that is still buffered must not make the file's end fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
