# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a job playbook through ansible-runner and says what became of each host.

ansible-playbook needs about a second before its first task.  So it is started as early
as possible, with a named pipe as its inventory: it loads everything it needs and then
waits there, while the job is being prepared.  What a host is told, the job's private key
included, passes through that pipe and is never on disk.  If the broker dies, the pipe
ends, the inventory does not parse, and ansible-playbook ends too.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import fcntl
import json
import math
import os
import signal
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import ansible_runner  # type: ignore[import-untyped]  # ships no type information

NODE_TASK = "hpc.dockerjob.job_node"
_PIPE_INTERVAL = 0.01
_NOT_FOR_ANSIBLE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)


@dataclasses.dataclass
class HostResults:
    """What the module ``job_node`` returned per host, and one line per host that failed."""

    returned: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def collect(self, event: Mapping[str, Any]) -> None:
        """Take in one event of ansible-runner."""
        data = event.get("event_data", {})
        host, result = data.get("host"), data.get("res") or {}
        kind = event.get("event")
        if kind == "runner_on_ok" and data.get("task_action") == NODE_TASK:
            self.returned[host] = result
        elif kind in ("runner_on_failed", "runner_on_unreachable"):
            self.failed[host] = " ".join(str(result.get("msg", kind)).split())


class PlaybookRun:
    """One run of a playbook, started now and released later."""

    def __init__(self, directory: Path, playbook: Literal["job_setup.yml", "job_teardown.yml"]) -> None:
        """Start ``playbooks/<playbook>``; it waits for its inventory.

        Args:
            directory: private directory of the job; the run makes one of its own in it.
            playbook: which one; only its plays tagged ``hosts`` are run.
        """
        self._playbook = playbook
        self._private = Path(tempfile.mkdtemp(prefix=f"{Path(playbook).stem}-", dir=directory))
        self._inventory = self._private / "inventory.json"
        os.mkfifo(self._inventory, 0o600)
        # Open for reading and writing: so opening doesn't wait for ansible-playbook, and it
        # never sees the end of the pipe before we close it.
        self._pipe = os.open(self._inventory, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._cancelled = False
        self._limit = math.inf
        self._status = "unstarted"
        self._results = HostResults()
        self._news = threading.Event()
        self._feeder: threading.Thread | None = None
        self._thread = threading.Thread(target=self._run, name=playbook, daemon=True)
        self._thread.start()

    def release(self, inventory: Mapping[str, Any], timeout: float) -> None:
        """Hand over the inventory; the tasks start as soon as Ansible has loaded.

        After *timeout* seconds the run is ended.
        """
        self._limit = time.monotonic() + timeout
        document = json.dumps(inventory).encode()
        self._feeder = threading.Thread(target=self._feed, args=(document,), name="inventory", daemon=True)
        self._feeder.start()

    def cancel(self) -> None:
        """End the run wherever it is; harmless when it has ended."""
        self._cancelled = True
        if self._feeder is None:
            self.release({}, 0)

    def _feed(self, document: bytes) -> None:
        """Write to the pipe and close it when all has been read: what is in a closed pipe is lost."""
        view = memoryview(document)
        while (view or _unread(self._pipe)) and self._thread.is_alive():
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(self._pipe, view) :] if view else view
            time.sleep(_PIPE_INTERVAL)
        os.close(self._pipe)

    def wait(self, hosts: Collection[str], timeout: float) -> bool:
        """Wait at most *timeout* seconds; say whether each of *hosts* is done, or the run has ended."""
        self._news.wait(timeout)
        self._news.clear()
        done = {*self._results.returned, *self._results.failed}
        return done.issuperset(hosts) or not self._thread.is_alive()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the run."""
        self._thread.join(timeout)

    def results(self, hosts: Collection[str]) -> HostResults:
        """Say what has become of each of *hosts*; call it when the run has ended or all are done.

        A host without a result has failed: a playbook that matched no host counts as
        successful to Ansible, but not to us.
        """
        failed = dict(self._results.failed)
        for host in hosts:
            if host not in self._results.returned and host not in failed:
                failed[host] = f"{self._playbook} ended ({self._status}) before this host was done"
        return HostResults(dict(self._results.returned), failed)

    def _run(self) -> None:
        # Batch systems signal every process of a job. A blocked signal stays blocked in the
        # children, so that the end of the job doesn't end the playbook that cleans up after it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_ANSIBLE)
        try:
            runner = ansible_runner.run(
                private_data_dir=str(self._private),
                playbook=str(collection_directory() / "playbooks" / self._playbook),
                inventory=str(self._inventory),
                envvars=self._environment(),
                settings={"suppress_ansible_output": True},
                event_handler=self._collect,
                cancel_callback=lambda: self._cancelled or time.monotonic() > self._limit,
                cmdline="--tags hosts",
                quiet=True,
            )
            self._status = runner.status
        finally:
            self._news.set()

    def _collect(self, event: Mapping[str, Any]) -> bool:
        """Take in an event; False tells ansible-runner that it need not be written to disk."""
        self._results.collect(event)
        self._news.set()
        return False

    def _environment(self) -> dict[str, str]:
        return {
            "ANSIBLE_COLLECTIONS_PATH": str(collection_directory().parents[2]),
            "ANSIBLE_FORKS": "64",
            "ANSIBLE_HOME": str(self._private / "home"),
            "ANSIBLE_INJECT_FACT_VARS": "False",
            "ANSIBLE_INVENTORY_ENABLED": "yaml",
            "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
            "ANSIBLE_NOCOLOR": "True",
            "HOME": str(self._private),
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        }


def _unread(pipe: int) -> int:
    """Return the number of bytes in a pipe (FIONREAD, ioctl_tty(2))."""
    buffer = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, buffer)
    return buffer[0]


def collection_directory() -> Path:
    """Directory of the installed collection, beside the environment this program runs in."""
    return Path(sys.prefix) / "ansible_collections" / "hpc" / "dockerjob"
