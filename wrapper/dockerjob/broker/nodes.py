# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the broker does to a job's containers while they run: signals, suspension, output.

Each is one Docker command on the hosts concerned, over the connections that are open anyway;
a playbook would need a second and a half where this takes a fifth of one.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from dockerjob_core import names
from dockerjob_core.errors import HostError

from .connections import Connections

PATIENCE = 30.0
"""Seconds that a host's Docker daemon may take for one of these."""


class Nodes:
    """The containers of one job, by their hosts."""

    def __init__(self, connections: Connections, job_id: str, hosts: Sequence[str]) -> None:
        """Name them; *hosts* are in the order of the nodes."""
        self._connections = connections
        self._names = {host: names.node_name(job_id, index) for index, host in enumerate(hosts)}
        self._first = hosts[0]

    def output_argv(self) -> list[str]:
        """Return the command that prints what node 0 writes, from its beginning to its end."""
        return self._connections.argv(self._first, "docker", "logs", "--follow", self._names[self._first])

    def terminal_argv(self) -> list[str]:
        """Return the command that is COMMAND's terminal in node 0, see :mod:`.terminal`."""
        agent = ("/opt/dockerjob/bin/dockerjob-agent", "terminal")
        return self._connections.argv(
            self._first, "docker", "exec", "--interactive", self._names[self._first], *agent
        )

    def signal_command(self, number: int) -> None:
        """Send COMMAND a signal, by way of node 0's first process.

        Raises:
            HostError: Docker did not take it.
        """
        name = signal.Signals(number).name
        self._on([self._first], f"send {name} to COMMAND", "kill", "--signal", name.removeprefix("SIG"))

    def freeze(self) -> None:
        """Stop every process of every container.

        Raises:
            HostError: some containers still run.
        """
        self._on(list(self._names), "suspend the container", "pause")

    def thaw(self) -> None:
        """Let them go on.

        Raises:
            HostError: some containers are still stopped.
        """
        self._on(list(self._names), "resume the container", "unpause")

    def _on(self, hosts: Sequence[str], what: str, *docker: str) -> None:
        failed = self._connections.run(hosts, lambda host: ("docker", *docker, self._names[host]), PATIENCE)
        if failed:
            raise HostError(
                f"could not {what} on " + "; ".join(f"{host}: {why}" for host, why in failed.items())
            )
