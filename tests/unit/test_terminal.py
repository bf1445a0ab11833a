# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Interactive jobs: the lines, and the whole way between two real terminals, but for sudo, ssh and Docker."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pty
import queue
import select
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import terminal_chain
from dockerjob.broker.terminal import MOST_WAITING, TerminalLink
from dockerjob.request import JobRequest, Terminal
from dockerjob.submit import terminal
from dockerjob.submit.cli import terminal_of
from dockerjob_core.errors import RequestError
from dockerjob_core.terminal_lines import (
    BEGUN,
    ENDED,
    TYPED,
    WINDOW,
    WRITTEN,
    Data,
    Lines,
    Size,
    Taken,
    Word,
    decode,
    encode,
)
from dockerjob_lab.system import wait_until
from hypothesis import given
from hypothesis import strategies as st
from terminals import SLEEP, Person
from test_request import request

WORDS = st.one_of(
    st.binary(max_size=TYPED).map(Data),
    st.builds(Size, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
    st.integers(0, WINDOW).map(Taken),
    st.sampled_from((BEGUN, ENDED)),
)


@given(st.lists(WORDS, max_size=5), st.integers(1, 100))
def test_words_arrive_whatever_pieces_they_come_in(words: list[Word], piece: int) -> None:
    stream = b"".join(map(encode, words))
    lines = Lines()
    came = [word for at in range(0, len(stream), piece) for word in lines.feed(stream[at : at + piece])]
    assert came == words


@given(st.binary(max_size=200))
def test_whatever_else_is_no_word(line: bytes) -> None:
    word = decode(line)
    assert word is None or decode(encode(word)) == word


@pytest.mark.parametrize(
    "text",
    [
        '{"data": "?"}',
        '{"data": 1}',
        '{"size": [1]}',
        '{"size": [-1, 2]}',
        '{"size": [70000, 2]}',
        '{"taken": -1}',
        '{"taken": 1e9}',
        '{"state": "x"}',
        '{"signal": 2}',
        "[" * 5000,
    ],
)
def test_what_no_word_may_be(text: str) -> None:
    assert decode(text.encode()) is None


def test_lines_are_as_short_as_the_pipes_need_them() -> None:
    assert len(encode(Data(b"x" * TYPED))) <= select.PIPE_BUF
    assert len(encode(Data(b"x" * WRITTEN))) < 32 * 1024
    lines = Lines()
    for _ in range(100):
        assert lines.feed(b"x" * 65536) == []
    assert lines.feed(b"\n" + encode(ENDED)) == [ENDED]


@pytest.mark.parametrize(
    "claim",
    [[24, 80], [24, 80, "xterm; id"], [24, 80, ""], [-1, 80, "vt100"], [True, 80, "vt100"], "vt100", 1],
)
def test_a_request_takes_no_other_terminal(claim: object) -> None:
    document = json.loads(request(terminal=Terminal(24, 80, "xterm-256color")).to_json())
    assert JobRequest.from_json(json.dumps(document).encode()).terminal == Terminal(24, 80, "xterm-256color")
    document["terminal"] = claim
    with pytest.raises(RequestError):
        JobRequest.from_json(json.dumps(document).encode())


def test_without_a_terminal_its_code_is_not_loaded() -> None:
    program = (
        "import sys; from dockerjob.submit.cli import terminal_of; assert terminal_of({}) is None;"
        "assert not any('terminal' in name for name in sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, check=True)


@pytest.fixture
def own_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (30, 90))
    for name in ("IN", "OUT"):
        monkeypatch.setattr(terminal, name, slave)
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor in (0, 1, slave))
    yield slave
    os.close(slave)
    os.close(master)


@pytest.mark.usefixtures("own_terminal")
def test_a_terminal_is_described_unless_it_is_switched_off() -> None:
    assert terminal_of({"TERM": "vt100"}) == Terminal(30, 90, "vt100")
    assert terminal_of({"TERM": "$(id)"}) == Terminal(30, 90, "dumb")
    assert terminal_of({"TERM": "vt100", "DOCKERJOB_TERMINAL": "0"}) is None


def test_a_terminal_that_is_someone_elses_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    assert terminal.find_terminal({"TERM": "vt100"}) is None


def test_the_broker_keeps_no_more_than_is_agreed(tmp_path: Path) -> None:
    link = TerminalLink(Terminal(1, 2, "vt100"))
    line = encode(Data(b"x" * TYPED))
    for _ in range(1000):
        link.take(line)
        link.take(b"noise\n")
        link.take(encode(ENDED))
    gone: queue.SimpleQueue[str] = queue.SimpleQueue()
    out = tmp_path / "out"
    link.start(["sh", "-c", f"cat >{out}; echo why >&2; exit 3"], gone.put)
    assert wait_until(out.exists, 30)
    link.stop()
    assert gone.get(timeout=30)
    assert out.stat().st_size <= MOST_WAITING


# -- from terminal to terminal ---------------------------------------------------------------


def person(directory: Path, command: str) -> Person:
    """Somebody at a shell that runs COMMAND once, and says then how it ended."""
    argv = [sys.executable, terminal_chain.__file__, "wrapper", str(directory), command]
    return Person(argv)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Person]:
    """Somebody at COMMAND=bash."""
    someone = person(tmp_path, "PS1='$ ' exec bash --norc --noprofile -i")
    someone.sees(r"\$ ")
    yield someone
    someone.child.close(force=True)


def test_command_has_a_terminal_with_job_control(shell: Person) -> None:
    shell.asks("test -t 0 && test -t 1 && test -t 2 && echo 'is one' $((1+1))", "is one 2")
    assert shell.asks("ps -o tty= -p $$; tty", r"pts/\d+\s+/dev/pts/\d+")
    shell.asks("stty size", r"\s40 500\s")
    shell.child.setwinsize(50, 132)
    shell.asks(
        "sleep 0.1; until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; echo resized $?", "resized 0"
    )
    shell.types("exit 7\r")
    shell.sees("report: one\r\nreport: two\r\n")
    shell.sees("wrapper ends 7")
    assert shell.ends() == 7


def test_control_c_is_the_commands_and_the_terminal_is_restored(shell: Person) -> None:
    shell.asks(*SLEEP)
    shell.types("\x03")
    shell.sees(r"\^C[^$]*\$ ")
    shell.asks("echo status $?", "status 130")
    shell.asks(*SLEEP)
    shell.types("\x1a")
    shell.sees("Stopped")
    shell.asks("kill %1; wait %1; echo $((40+2))", "42")
    flags = terminal_flags(shell)
    assert not flags & termios.ECHO
    assert not flags & termios.ICANON
    shell.types("exit\r")
    shell.sees("wrapper ends")
    flags = terminal_flags(shell)
    assert flags & termios.ECHO
    assert flags & termios.ICANON
    assert shell.ends() == 0


def terminal_flags(someone: Person) -> int:
    flags = someone.state()[3]
    assert isinstance(flags, int)
    return flags


def test_a_megabyte_is_pasted_whole_and_ten_come_back(shell: Person, tmp_path: Path) -> None:
    text = base64.b64encode(os.urandom(750_000)).decode()
    lines = "".join(f"{text[at : at + 1000]}\r" for at in range(0, len(text), 1000))
    shell.asks("stty -echo; cat >pasted; stty echo; echo $((1+1)) lines", r"\n")
    shell.types(lines)
    shell.types("\x04")
    shell.sees("2 lines")
    assert (tmp_path / "pasted").read_text() == lines.replace("\r", "\n")
    shell.child.maxread = 1 << 20
    shell.types("yes | head -c 10M | tee big | md5sum; head -c 10M big; echo $((2+2)) the end\r")
    digest = hashlib.md5(b"y\n" * (5 << 20), usedforsecurity=False).hexdigest()
    shell.sees(digest)
    shell.sees("4 the end")
    assert shell.child.before.count(b"y\r\n") == 5 << 20


def test_a_command_that_does_not_read_still_gets_sizes_and_signals(tmp_path: Path) -> None:
    (tmp_path / "program").write_text(
        "import os, signal, time\n"
        "def resized(*_): print('rows', os.get_terminal_size().lines, flush=True)\n"
        "signal.signal(signal.SIGWINCH, resized)\n"
        "print('runs', flush=True)\n"
        "while True: time.sleep(1000)\n"
    )
    someone = person(tmp_path, f"stty -echo; exec {sys.executable} program")
    someone.sees("runs")
    # More than all buffers on the way hold; nobody waits for the rest of it.
    threading.Thread(target=someone.child.send, args=("x" * 500_000,), daemon=True).start()
    someone.child.setwinsize(33, 44)
    someone.sees("rows 33")
    someone.child.kill(signal.SIGTERM)
    someone.sees("wrapper ends")
    assert terminal_flags(someone) & termios.ECHO
    assert someone.ends() == 128 + signal.SIGHUP


def test_a_killed_broker_hangs_the_terminals_up(tmp_path: Path) -> None:
    someone = person(tmp_path, "trap 'touch hung-up; exit' HUP; echo runs; while :; do sleep 0.1; done")
    pid = int(someone.sees(r"broker (\d+)")[1])
    someone.sees("runs")
    assert not terminal_flags(someone) & termios.ECHO
    os.kill(pid, signal.SIGKILL)
    someone.sees("wrapper ends -9")
    assert terminal_flags(someone) & termios.ECHO
    someone.ends()
    for _ in range(300):
        if (tmp_path / "hung-up").exists():
            return
        select.select([], [], [], 0.1)
    pytest.fail("COMMAND was not told")


def test_control_c_ends_a_job_that_has_not_begun(tmp_path: Path) -> None:
    someone = person(tmp_path, "sleep 1000")
    someone.sees(r"broker \d+")
    someone.types("\x03")
    someone.sees("wrapper ends")
    assert terminal_flags(someone) & termios.ISIG
    # The second, if COMMAND was faster.
    assert someone.ends() in (128 + signal.SIGHUP, 128 + signal.SIGINT)


def test_what_command_leaves_running_holds_nothing_up(tmp_path: Path) -> None:
    someone = person(tmp_path, "(trap '' HUP; sleep 5; echo late) & echo last words; exit 3")
    someone.sees("last words")
    someone.sees("wrapper ends 3")
    assert someone.ends() == 3


def test_command_ends_with_its_terminal(tmp_path: Path) -> None:
    someone = person(tmp_path, "echo runs; read _; cat")
    someone.sees("runs")
    someone.child.close(force=True)
    for _ in range(300):
        listed = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout
        if not listed.split():
            return
        select.select([], [], [], 0.1)
    pytest.fail(f"left: {listed!r}")
