# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh from the broker to the job's hosts: one shared connection per host and job.

The connections are opened while the rest of the job is being prepared, so Ansible finds
them ready, and an unreachable host is known by name before anything is created.  At the
other end of each stands the job's guard on that host, see :mod:`dockerjob_core.guard`: if
this process dies, by whatever signal, the guards see the connections end.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tenacity
from dockerjob_core import adoption, node_program
from dockerjob_core.errors import HostError

from ..config import Config

SSH = "/usr/bin/ssh"
GOODBYE = 3.0
"""Seconds that the guards get to go when the job is over."""

IMAGE_PATIENCE = 20.0
"""Seconds that the guards may take to say whether their hosts have the job's image."""

PARALLEL = 32
"""Hosts that are spoken to at the same time."""


class Connections:
    """The shared connections of one job; control sockets lie in *directory*."""

    def __init__(self, config: Config, hosts: Sequence[str], directory: Path) -> None:
        """Remember what to connect to; nothing is opened yet."""
        self._config = config
        self._hosts = tuple(hosts)
        self._directory = directory
        self._guards: dict[str, subprocess.Popen[bytes]] = {}
        self._programs: set[str] = set()
        self._asked: set[str] = set()
        self._early: list[dict[str, Any]] = []

    def options(self) -> list[str]:
        """Return the options shared by the broker and Ansible (ssh_config(5)): one socket per address, no prompt."""
        settings = self._config.ansible
        wanted = {
            "BatchMode": "yes",
            "ConnectTimeout": str(settings.connect_timeout),
            "ControlMaster": "no",
            "ControlPath": str(self._directory / "%h"),
            "IdentitiesOnly": "yes",
            "KexAlgorithms": settings.kex_algorithms,
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": settings.known_hosts,
        }
        return [word for name, value in wanted.items() for word in ("-o", f"{name}={value}")]

    def argv(self, host: str, *command: str, master: bool = False) -> list[str]:
        """Build the argument list that runs *command* on *host*; its words must need no quoting."""
        settings = self._config.ansible
        target = f"{settings.user}@{self._config.hosts[host].address}"
        # Of an option that is given twice, ssh takes the first.
        first = ["-o", "ControlMaster=yes"] if master else []
        return [SSH, "-F", "none", "-i", settings.private_key, *first, *self.options(), target, *command]

    def open(self) -> None:
        """Connect to all hosts at once.

        Raises:
            HostError: naming each host that did not answer, and why.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        results = self._on_all(self._open)
        failed = [f"{host}: {reason}" for host, reason in results.items() if reason]
        if failed:
            raise HostError(f"can't reach {len(failed)} of {len(results)} hosts by ssh: {'; '.join(failed)}")

    def leave_job(self) -> None:
        """Have the first host's guard take this process and its children out of the job's cgroup, if it runs there.

        What the batch system does to the job does not hit them from then on.
        """
        self._tell(self._hosts[0], {"adopt": adoption.identity()})

    def _open(self, host: str) -> str:
        """Connect to *host*, again where its sshd is only too busy; return why it can't be, or nothing."""
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_result(_is_crowded),
            wait=tenacity.wait_random(0.2, 1.0),
            stop=tenacity.stop_after_delay(self._config.ansible.connect_timeout),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        return str(attempts(self._start_guard, host))

    def _start_guard(self, host: str) -> str:
        limit = self._config.ansible.connect_timeout + 5
        guard = subprocess.Popen(
            self.argv(host, guard_command(self._config.ansible.python_interpreter), master=True),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._guards[host] = guard
        assert guard.stdout and guard.stderr  # noqa: S101, PT018  # both are PIPE
        with selectors.DefaultSelector() as selector:
            selector.register(guard.stdout, selectors.EVENT_READ)
            if not selector.select(limit):
                guard.kill()
                return f"no answer within {limit} s"
        if said := os.read(guard.stdout.fileno(), 4096):
            if said.startswith(b"{"):
                self._programs.add(host)
            return ""
        lines = guard.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ssh ended with {guard.wait()}"

    def ask_for_image(self, image: str) -> None:
        """Have the guards look whether their hosts lack *image*; :meth:`lacking` returns what they found.

        A host without our program can't be asked, and says in the set-up what it lacks.
        """
        self._asked = set(self._programs)
        for host in self._asked:
            self._tell(host, {"image": image})

    def lacking(self) -> list[str]:
        """Return the hosts that lack the image, in order; one that does not answer is left to the set-up."""
        lacking: set[str] = set()
        deadline = time.monotonic() + IMAGE_PATIENCE
        with selectors.DefaultSelector() as selector:
            for host in self._asked:
                selector.register(self._guards[host].stdout, selectors.EVENT_READ, host)  # type: ignore[arg-type]
            while selector.get_map() and (ready := selector.select(max(0.0, deadline - time.monotonic()))):
                for key, _ in ready:
                    words = _words(key.fd)
                    self._early += [word for word in words if "lacks" not in word]
                    if any(word.get("lacks") for word in words):
                        lacking.add(key.data)
                    if not words or any("lacks" in word for word in words):
                        selector.unregister(key.fileobj)
        self._asked.clear()
        return [host for host in self._hosts if host in lacking]

    def arm(self, options: Mapping[str, Any], own_files: Sequence[str]) -> None:
        """Have the guards take the job down if this process dies.

        Args:
            options: those of the module ``job_node``, with ``state: absent``.
            own_files: what this process has on the job's first host, where the batch system starts it.
        """
        for host in self._hosts:
            remove = list(own_files) if host == self._hosts[0] else []
            self._tell(host, {"arm": options, "remove": remove})

    def watch(
        self,
        containers: Mapping[str, tuple[int, str]],
        on_end: Callable[[str, bool], None],
        on_suspension: Callable[[bool], None],
    ) -> None:
        """Say, from a thread, when a host's container has ended or the host is lost, and when the job is frozen.

        Args:
            containers: per host, the container's first process and its id.
            on_end: called once per host with its name, and whether the host is there still.
            on_suspension: called with True when the job's cgroup on the first host is frozen, with False
                when that has ended.
        """
        for host, (pid, container_id) in containers.items():
            self._tell(host, {"watch": {"pid": pid, "id": container_id}})
        thread = threading.Thread(
            target=self._listen, args=(on_end, on_suspension), name="guards", daemon=True
        )
        thread.start()

    def _listen(self, on_end: Callable[[str, bool], None], on_suspension: Callable[[bool], None]) -> None:
        for word in self._early:
            if "suspended" in word:
                on_suspension(word["suspended"])
        with selectors.DefaultSelector() as selector:
            for host, guard in self._guards.items():
                assert guard.stdout  # noqa: S101  # stdout=PIPE
                selector.register(guard.stdout, selectors.EVENT_READ, host)
            while selector.get_map():
                for key, _ in selector.select():
                    words = _words(key.fd)
                    for word in words:
                        if "suspended" in word:
                            on_suspension(word["suspended"])
                    if not words or any("ended" in word for word in words):
                        on_end(key.data, bool(words))
                        selector.unregister(key.fileobj)

    def run(
        self, hosts: Sequence[str], command: Callable[[str], Sequence[str]], timeout: float
    ) -> dict[str, str]:
        """Run a command on each of *hosts* at once.

        Args:
            hosts: which ones.
            command: the words for a host, which must need no quoting.
            timeout: seconds that each may take.

        Returns:
            Per host that failed, why.
        """

        def one(host: str) -> str:
            argv = self.argv(host, *command(host))
            try:
                done = subprocess.run(
                    argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
                )
            except subprocess.TimeoutExpired:
                return f"no answer within {timeout:g} s"
            said = done.stderr.decode(errors="replace").split()
            return (" ".join(said) or f"ended with {done.returncode}") if done.returncode else ""

        results = self._on_all(one, hosts)
        return {host: reason for host, reason in results.items() if reason}

    def close(self) -> None:
        """Dismiss the guards and end the connections; ones that are gone already are fine."""
        for host in self._guards:
            self._tell(host, {"end": True})
        deadline = time.monotonic() + GOODBYE
        for guard in self._guards.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                guard.wait(max(0.0, deadline - time.monotonic()))
            guard.kill()
            guard.wait()
        self._guards.clear()

    def _tell(self, host: str, command: Mapping[str, Any]) -> None:
        pipe = self._guards[host].stdin
        assert pipe  # noqa: S101  # stdin=PIPE
        with contextlib.suppress(OSError):
            os.write(pipe.fileno(), json.dumps(command).encode() + b"\n")

    def _on_all(self, action: Callable[[str], str], hosts: Sequence[str] | None = None) -> dict[str, str]:
        chosen = self._hosts if hosts is None else tuple(hosts)
        with ThreadPoolExecutor(max_workers=min(PARALLEL, max(1, len(chosen)))) as pool:
            return dict(zip(chosen, pool.map(action, chosen), strict=True))


def _words(descriptor: int) -> list[dict[str, Any]]:
    """Read what a guard says; nothing at the end of its connection."""
    try:
        # A guard writes each of its short lines at once, and a pipe keeps them whole.
        return [json.loads(line) for line in os.read(descriptor, 4096).splitlines()]
    except OSError:
        return []


def _is_crowded(reason: str) -> bool:
    """Tell whether sshd has turned a connection away because too many others are just logging in (MaxStartups)."""
    return any(sign in reason for sign in ("Connection closed by", "Connection reset by"))


def guard_command(python: str) -> str:
    """Return what the login shell of a host runs: the guard, or on a host without it just something that stays."""
    program = shlex.quote(node_program.directory())
    script = (
        f"test -f {program}/__main__.py || {{ echo none; exec cat >/dev/null; }}; "
        f"SETUPTOOLS_USE_DISTUTILS=stdlib exec {shlex.quote(python)} -I {program} guard"
    )
    return f"exec sh -c {shlex.quote(script)}"
