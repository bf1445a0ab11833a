# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""COMMAND's terminal in a real container, at the other end of ``docker exec``."""

from __future__ import annotations

import os
import queue
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from agent_fixtures import JobContainers
from dockerjob.broker.terminal import TerminalLink
from dockerjob.request import Terminal
from dockerjob_core.errors import DiscoveryError
from dockerjob_core.terminal_lines import BEGUN, ENDED, Data, Lines, Size, State, Taken, encode
from terminals import SLEEP

pytestmark = pytest.mark.integration

SHELL = "PS1='ready> ' exec bash --norc --noprofile -i"
AGENT = "/opt/dockerjob/bin/dockerjob-agent"


class Seat:
    """The wrapper's end of the link: what comes is kept, and what is typed must be taken."""

    def __init__(self, job: JobContainers) -> None:
        self.lost: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.screen = b""
        self.states: list[State] = []
        self.taken = 0
        self._job = job
        self._source, self._target = os.pipe()
        self.link = TerminalLink(Terminal(30, 90, "xterm"), self._target)
        threading.Thread(target=self._read, daemon=True).start()

    def start(self) -> None:
        argv = ["/usr/bin/docker", "--host", self._job.docker.host, "exec", "-i", self._job.nodes[0]]
        self.link.start([*argv, AGENT, "terminal"], self.lost.put)

    def types(self, text: str) -> None:
        self.link.take(encode(Data(text.encode())))

    def asks(self, line: str, pattern: str) -> re.Match[bytes]:
        """Type a line and wait for what *pattern* matches in what comes after it."""
        seen = len(self.screen)
        self.types(line if line == "\x03" else f"{line}\r")
        deadline = time.monotonic() + 30
        while not (match := re.search(pattern.encode(), self.screen[seen:])):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.screen[seen:]!r}"
            time.sleep(0.05)
        return match

    def sees(self, text: str) -> None:
        self._job.wait_for(lambda: text.encode() in self.screen, 30)

    def _read(self) -> None:
        lines = Lines()
        while data := os.read(self._source, 65536):
            for word in lines.feed(data):
                if isinstance(word, Data):
                    self.screen += word.data
                elif isinstance(word, State):
                    self.states.append(word)
                elif isinstance(word, Taken):
                    self.taken += word.count

    def close(self) -> None:
        self.link.stop()
        os.close(self._target)


@pytest.fixture
def sits(job: JobContainers) -> Iterator[Callable[[str], Seat]]:
    """Start a job with a terminal, and sit down at it."""
    seats = []

    def sit(command: str) -> Seat:
        job.image, job.spec = "shell:12", {"terminal": True}
        job.prepare(command)
        seats.append(Seat(job))
        job.start(0)
        seats[0].start()
        job.start(1)
        return seats[0]

    yield sit
    for seat in seats:
        seat.close()


def test_a_shell_at_a_terminal_of_its_own(job: JobContainers, sits: Callable[[str], Seat]) -> None:
    seat = sits(SHELL)
    seat.sees("ready> ")
    seat.asks("tty; stty size; id -u; echo open >/dev/tty", r"/dev/pts/\d+\r\n30 90\r\n4711\r\nopen\r\n")
    seat.link.take(encode(Size(50, 132)))
    seat.asks("stty size", r"\n50 132\r\n")
    seat.asks(*SLEEP)
    seat.asks("\x03", r"\^C[^>]*ready> ")
    seat.asks("echo interrupted $?", "\ninterrupted 130\r")
    seat.asks(f"ssh {job.nodes[1]} hostname", rf"\n{job.nodes[1]}\r")
    seat.asks(f"ssh -t {job.nodes[1]} 'stty size; exit 5'; echo $?", r"\n50 132\r\n(.*\r\n)?5\r")
    # The last output arrives, also where nobody waits for it.
    seat.types("seq 100000; exit 7\r")
    assert job.wait_for_end(0) == 7
    seat.link.wait(30)
    job.wait_for(lambda: seat.states == [BEGUN, ENDED])
    assert seat.screen.count(b"\n") > 100_000
    assert b"\n100000\r\n" in seat.screen
    assert seat.lost.empty()
    # None of it is in Docker's log.
    assert job.output() == ""
    assert job.finish_value() == "7"
    assert not list(job.node_directory(0).glob("terminal"))


def test_who_ends_the_other_end_hangs_up(job: JobContainers, sits: Callable[[str], Seat]) -> None:
    seat = sits("trap 'echo hung up >result; exit 9' HUP; echo runs; while :; do sleep 0.1; done")
    seat.sees("runs")
    job.docker.run("exec", job.nodes[0], "pkill", "-KILL", "-f", "dockerjob-agent terminal")
    assert job.wait_for_end(0) == 9
    assert (job.jobdir / "result").read_text() == "hung up\n"
    assert seat.lost.get(timeout=30)
    job.wait_for(lambda: seat.states == [BEGUN, ENDED])


def test_a_signal_ends_a_shell_that_waits_for_a_line(job: JobContainers, sits: Callable[[str], Seat]) -> None:
    seat = sits(SHELL)
    seat.sees("ready> ")
    seat.asks("sleep 1000 & echo $((40+2))", "\n42\r")
    job.signal("TERM")
    assert job.wait_for_end(0) == 128 + signal.SIGHUP


def test_without_its_terminal_command_does_not_begin(job: JobContainers) -> None:
    job.image, job.spec = "shell:12", {"terminal": True, "discovery_timeout": 5}
    job.prepare("echo runs")
    job.start()
    assert job.wait_for_end(0) == DiscoveryError.exit_status
    assert "no terminal for COMMAND came in 5 s" in job.log(0)
    assert "runs" not in job.output()
