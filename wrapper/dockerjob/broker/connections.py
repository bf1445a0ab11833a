# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh from the broker to the job's hosts: one shared connection per host and job.

The connections are opened while the rest of the job is being prepared, so Ansible finds
them ready, and an unreachable host is known by name before anything is created.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dockerjob_core.errors import HostError

from ..config import Config

SSH = "/usr/bin/ssh"


class Connections:
    """The shared connections of one job; control sockets lie in *directory*."""

    def __init__(self, config: Config, hosts: Sequence[str], directory: Path) -> None:
        """Remember what to connect to; nothing is opened yet."""
        self._config = config
        self._hosts = tuple(hosts)
        self._directory = directory

    def options(self) -> list[str]:
        """Return the options shared by the broker and Ansible (ssh_config(5)): one socket per address, no prompt."""
        settings = self._config.ansible
        wanted = {
            "BatchMode": "yes",
            "ConnectTimeout": str(settings.connect_timeout),
            "ControlMaster": "auto",
            "ControlPath": str(self._directory / "%h"),
            "ControlPersist": "yes",
            "IdentitiesOnly": "yes",
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": settings.known_hosts,
        }
        return [word for name, value in wanted.items() for word in ("-o", f"{name}={value}")]

    def argv(self, host: str, *command: str) -> list[str]:
        """Build the argument list that runs *command* on *host*; its words must need no quoting."""
        settings = self._config.ansible
        target = f"{settings.user}@{self._config.hosts[host].address}"
        return [
            SSH,
            "-F",
            "none",
            "-i",
            settings.private_key,
            *self.options(),
            target,
            *command,
        ]

    def open(self) -> None:
        """Connect to all hosts at once.

        Raises:
            HostError: naming each host that did not answer, and why.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ThreadPoolExecutor(max_workers=min(32, len(self._hosts))) as pool:
            results = dict(zip(self._hosts, pool.map(self._open, self._hosts), strict=True))
        failed = [f"{host}: {reason}" for host, reason in results.items() if reason]
        if failed:
            raise HostError(f"can't reach {len(failed)} of {len(results)} hosts by ssh: {'; '.join(failed)}")

    def _open(self, host: str) -> str:
        limit = self._config.ansible.connect_timeout + 5
        try:
            done = subprocess.run(
                self.argv(host, "true"),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {limit} s"
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return (lines[-1] if lines else f"ssh ended with {done.returncode}") if done.returncode else ""

    def close(self) -> None:
        """End the shared connections; ones that are gone already are fine."""
        for host in self._hosts:
            if not (self._directory / self._config.hosts[host].address).exists():
                continue
            argv = self.argv(host)
            argv[1:1] = ["-O", "exit"]
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
