# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""supervisord as PID 1, in this process: it keeps sshd and the agent, reaps, and ends with the agent.

Supervisor 4 waits up to a second in ``poll`` before it starts its programs and again
after every signal.  A job's containers must be up and down faster than that, so its
poller is wrapped here: it returns at once for the first time and whenever a signal came.
Signals to the container go to the agent, which knows what they mean for COMMAND.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from .ssh import sshd_program

AGENT = "/opt/dockerjob/bin/dockerjob-agent"

FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
    signal.SIGCONT,
)
"""Signals that ``docker kill --signal`` sends to COMMAND by way of PID 1 and the agent."""

ENDING_TIMEOUT = 0.01
"""Seconds of a round of supervisor's loop while it shuts down; it stops one program per round."""


def supervisord_conf(directory: Path) -> str:
    """Text of the node's ``supervisord.conf``; all its files lie in *directory*."""
    return f"""[supervisord]
nodaemon=true
silent=true
identifier=dockerjob
logfile={directory}/supervisord.log
logfile_maxbytes=1MB
logfile_backups=0
pidfile={directory}/supervisord.pid
childlogdir={directory}
minfds=64
minprocs=1

[program:sshd]
command={sshd_program()} -D -e -f {directory}/sshd_config
priority=2
startsecs=0
autorestart=true
stopwaitsecs=1
redirect_stderr=true
stdout_logfile={directory}/sshd.log
stdout_logfile_maxbytes=1MB
stdout_logfile_backups=0

[program:agent]
command={AGENT} run
priority=1
startsecs=0
autorestart=false
stopwaitsecs=5
redirect_stderr=true
stdout_logfile={directory}/agent.out
stdout_logfile_maxbytes=1MB
stdout_logfile_backups=0
"""


class PromptPoller:
    """Supervisor's poller, woken by signals instead of by its one-second timeout."""

    def __init__(self, inner: Any, started: Callable[[], None], ending: Callable[[], bool]) -> None:
        """Wrap *inner*; the wake-up pipe is made on first use, after supervisor closed stray files.

        Args:
            inner: The poller that supervisor chose.
            started: Called once, when supervisor's loop begins.
            ending: Says whether supervisor is shutting down, which takes it several rounds.
        """
        self._inner = inner
        self._started = started
        self._ending = ending
        self._wakeup: int | None = None

    def __getattr__(self, name: str) -> Any:
        """Pass everything but :meth:`poll` through."""
        return getattr(self._inner, name)

    def poll(self, timeout: float) -> tuple[list[int], list[int]]:
        """Wait for files or a signal; return readable and writable descriptors."""
        if self._wakeup is None:
            self._wakeup, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
            self._started()
            timeout = 0
        elif self._ending():
            timeout = min(timeout, ENDING_TIMEOUT)
        self._inner.register_readable(self._wakeup)
        readable, writable = self._inner.poll(timeout)
        if self._wakeup in readable:
            readable.remove(self._wakeup)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 4096)
        return readable, writable


def forget_parent(environment: Mapping[str, str]) -> None:
    """Make a forked child what exec would have made it: its own environment, no handlers of its parent's."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.environ.clear()
    os.environ.update(environment)


def run_supervisord(configuration: Path, run_agent: Callable[[], int]) -> int:
    """Run supervisord until the agent has ended; return the agent's exit status when all is gone.

    *run_agent* is what the command ``dockerjob-agent run`` does.  The child that supervisord
    forks calls it at once, rather than load another interpreter: a tenth of a second and 10 MB.
    """
    # Supervisor has no type information, and is installed in images only.
    events, supervisord = import_module("supervisor.events"), import_module("supervisor.supervisord")
    options = supervisord.ServerOptions()
    options.realize(["--configuration", str(configuration)])
    # What supervisord's own main sets for its first and, here, only round.
    options.first, options.test = True, False
    supervisor = supervisord.Supervisor(options)

    def execute(program: str, argv: list[str], environment: dict[str, str]) -> None:
        if program != AGENT:
            os.execve(program, argv, environment)  # noqa: S606  # supervisord's own argv
        forget_parent(environment)
        status = 1
        try:
            status = run_agent()
        except Exception:
            traceback.print_exc()
        os._exit(status)

    options.execve = execute

    def agent_process() -> Any:
        return supervisor.process_groups["agent"].processes["agent"]

    def forward(number: int, _frame: Any) -> None:
        pid = agent_process().pid
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        elif number in (signal.SIGTERM, signal.SIGINT):
            options.mood = supervisord.SupervisorStates.SHUTDOWN

    def end_with_agent(event: Any) -> None:
        if event.process.config.name == "agent":
            options.mood = supervisord.SupervisorStates.SHUTDOWN

    def take_over() -> None:
        # Not earlier: supervisor sets its own handlers and forgets all subscribers when it starts.
        for number in FORWARDED:
            signal.signal(number, forward)
        events.subscribe(events.ProcessStateExitedEvent, end_with_agent)
        events.subscribe(events.ProcessStateFatalEvent, end_with_agent)

    options.poller = PromptPoller(
        options.poller, take_over, lambda: options.mood < supervisord.SupervisorStates.RUNNING
    )
    with contextlib.suppress(supervisord.asyncore.ExitNow):
        supervisor.main()
    # Supervisor says -1 for a program that died of a signal, and None for one that never ran.
    return int(agent_process().exitstatus or 0)
