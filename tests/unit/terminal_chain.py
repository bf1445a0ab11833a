# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that stands between a user's terminal and COMMAND's, without sudo, ssh and Docker between its parts.

Run at a terminal: ``terminal_chain.py wrapper DIRECTORY COMMAND``.  It starts itself as the broker, and that
as the program in node 0; the agent is a thread of the broker's.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dockerjob.broker.inbox import Inbox, Signalled
from dockerjob.broker.terminal import TerminalLink
from dockerjob.request import Terminal
from dockerjob.submit import cli, terminal
from dockerjob_agent import terminal as relay
from dockerjob_agent.command import Command
from dockerjob_agent.spec import JobSpec, Node

LOST = 253
"""Exit status of a broker whose other end has gone."""


def main() -> None:
    part, directory, command = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    parts: dict[str, Callable[[Path, str], int]] = {
        "wrapper": wrapper,
        "broker": broker,
        "relay": lambda where, _: relay.main(where),
    }
    # Threads wait for what does not come any more.
    os._exit(parts[part](directory, command))


def itself(part: str, directory: Path, command: str) -> list[str]:
    return [sys.executable, __file__, part, str(directory), command]


def wrapper(directory: Path, command: str) -> int:
    stdout, stderr = terminal.streams()
    process = subprocess.Popen(
        itself("broker", directory, command),
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
    assert process.stdin
    forward = cli._Forward()
    forward.install()
    forward.to(process.stdin)
    print(f"broker {process.pid}", flush=True)
    status = terminal.Session(process, partial(cli._send, process.stdin)).run()
    print(f"wrapper ends {status}", flush=True)
    return status


def broker(directory: Path, command: str) -> int:
    rows, columns = 24, 80
    inbox, link = Inbox(), TerminalLink(Terminal(rows, columns, "xterm"))
    inbox.listen(sys.stdin.buffer, link.take)
    events: queue.SimpleQueue[relay.Attached | int] = queue.SimpleQueue()
    relay.await_terminal(directory, events.put)
    link.start(itself("relay", directory, command), lambda reason: os._exit(LOST))
    attached = events.get()
    assert isinstance(attached, relay.Attached)
    started = Command(spec(directory), command.encode(), os.environ, attached.slave)
    attached.begun()
    started.when_done(events.put)

    def obey() -> None:
        while isinstance(message := inbox.get(600), Signalled):
            started.signal(message.number)

    threading.Thread(target=obey, daemon=True).start()
    status = events.get()
    assert isinstance(status, int)
    attached.ended()
    link.wait(10)
    print("report: one\nreport: two", file=sys.stderr, flush=True)
    return status


def spec(directory: Path) -> JobSpec:
    return JobSpec(  # noqa: S604  # a path
        job_id="1",
        node_index=0,
        nodes=(Node(0, "1_node_0", "node1", 1, "10.0.0.1"),),
        interface="eth1",
        prefix_length=24,
        jobdir=str(directory),
        hostfile=None,
        shell="/bin/bash",
        lease_id=1,
        lifetime=None,
        discovery_timeout=30,
        ssh_port=2222,
        verbose=False,
        terminal=True,
        etcd_target="",
        etcd_server_name="",
    )


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    main()
