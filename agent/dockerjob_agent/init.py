# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PID 1 of a node: makes the node's key and configuration, then becomes supervisord."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dockerjob_core.errors import ConfigError, DockerjobError

from . import mpi, services, ssh
from .command import EXIT_STATUS_NAME
from .files import write_atomic, write_in_place
from .log import ERROR_NAME, StoryLog
from .spec import READ_ONLY, WRITABLE, JobSpec, load, load_environment

DIED = (-1, 1)
"""What supervisor reports for an agent that was killed, or ended in an exception."""


def check_writable(directory: Path) -> None:
    """Raise ``ConfigError`` when the node's directory is not the user's to write."""
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{directory} is not writable for uid {os.getuid()}; the container must run as the job's user"
        )


def write_configuration(spec: JobSpec, read_only: Path, writable: Path) -> None:
    """Write what sshd and supervisord read, and the first state of ``/etc/hosts``."""
    environment = mpi.job_environment(os.environ, load_environment(read_only), spec.interface, writable)
    sshd = ssh.sshd_config(spec.ssh_port, environment, str(writable), spec.shell)
    write_atomic(writable / "sshd_config", sshd)
    write_atomic(writable / "authorized_keys", "")
    write_atomic(writable / "known_hosts", "")
    write_in_place(writable / "hosts", ssh.hosts([(spec.me.address, spec.me.name)]))
    write_atomic(writable / "supervisord.conf", services.supervisord_conf(writable))
    for name in (EXIT_STATUS_NAME, ERROR_NAME):
        (writable / name).unlink(missing_ok=True)


def run_agent() -> int:
    """Be the agent, in the process that supervisord forked for it."""
    from . import run

    return run.main()


def forget_own_variables() -> None:
    """Take out of the environment what Python itself has put there: LC_CTYPE, where it found ``C`` (PEP 538)."""
    given = {entry.partition(b"=")[0] for entry in Path("/proc/self/environ").read_bytes().split(b"\0")}
    for name in os.environb.keys() - given:
        del os.environb[name]


def main() -> int:
    """Prepare the node and run its services; the exit status tells ``docker`` how it went."""
    forget_own_variables()
    os.environ[mpi.STARTED] = repr(time.time())
    check_writable(WRITABLE)
    log = StoryLog()
    spec = load(READ_ONLY)
    log(f'NODE "{spec.me.name}" STARTS ON HOST "{spec.me.host}" AS UID {os.getuid()}')
    key = ssh.generate_key(WRITABLE, spec.me.name)
    write_configuration(spec, READ_ONLY, WRITABLE)
    _, problem = key.communicate()
    if key.returncode:
        log.error(f"ssh-keygen failed on {spec.me.name}: {problem.decode(errors='replace').strip()}")
        return ConfigError.exit_status
    agent_status = services.run_supervisord(WRITABLE / "supervisord.conf", run_agent)
    return exit_status(WRITABLE, agent_status, log)


def exit_status(directory: Path, agent_status: int, log: StoryLog) -> int:
    """Return the container's exit status: the agent's, which is COMMAND's where that ran.

    An agent that died without a word gets one here, so that the job's report has the reason.
    """
    if (directory / EXIT_STATUS_NAME).exists() or agent_status == 0:
        return agent_status
    if not (directory / ERROR_NAME).exists() and agent_status in DIED:
        words = (directory / "agent.out").read_text(errors="replace").strip().splitlines()
        log.error(
            f"the agent died unexpectedly: {words[-1] if words else 'killed, perhaps for lack of memory'}"
        )
        return DockerjobError.exit_status
    return agent_status
