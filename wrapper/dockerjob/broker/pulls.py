# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has hosts pull an image from the site's registry: so many at a time, in a time that grows with their number."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from dockerjob_core import node_program

from ..config import Config

INTERVAL = 0.2
NEWS = 5.0
"""Seconds between two lines about the progress."""

SHOWN = 4
"""Hosts that such a line names."""

SLACK = 15.0
"""Seconds that a host gets to end a pull by itself, when its time is over."""


class Pulls:
    """One image on its way to several hosts."""

    def __init__(self, config: Config, image: str, hosts: int, argv: Callable[..., list[str]]) -> None:
        """Prepare; nothing is started.

        Args:
            config: the site's, with a registry.
            image: its name with digest.
            hosts: how many shall have the image, also those that have it already.
            argv: makes of a host and words the command that runs these there.
        """
        assert config.registry  # noqa: S101  # the caller's duty
        self._argv = argv
        self._program = (config.ansible.python_interpreter, "-I", node_program.directory(), "pull", image)
        self._count = hosts
        self._at_a_time = config.registry.pulls
        self._limit = pull_limit(config.registry.pull_timeout, hosts)
        self._percent: dict[str, int] = {}
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(
        self, lacking: Sequence[str], keep_waiting: Callable[[], None], tell: Callable[[str], None]
    ) -> dict[str, str]:
        """Pull on the hosts of *lacking*.

        Args:
            lacking: hosts without the image.
            keep_waiting: called several times a second; what it raises ends the pulls.
            tell: gets a line about the progress at the beginning, now and then, and at the end.

        Returns:
            Per host that has failed, why.
        """
        with ThreadPoolExecutor(min(self._at_a_time, len(lacking))) as pool:
            results = {host: pool.submit(self._pull, host) for host in lacking}
            told = 0.0
            try:
                while not all(result.done() for result in results.values()):
                    keep_waiting()
                    if time.monotonic() - told >= NEWS:
                        told = time.monotonic()
                        tell(self._progress(results))
                    time.sleep(INTERVAL)
            finally:
                self._stop()
        failed = {host: why for host, result in results.items() if (why := result.result())}
        tell(f"{self._count - len(failed)} of {self._count} hosts have the image")
        return failed

    def _progress(self, results: dict[str, Future[str]]) -> str:
        left = [host for host, result in results.items() if not result.done()]
        pulling = [f"{host} {self._percent[host]} %" for host in left if host in self._percent]
        more = f" and {len(pulling) - SHOWN} more" if len(pulling) > SHOWN else ""
        shown = ", ".join(pulling[:SHOWN]) + more
        return f"{self._count - len(left)} of {self._count} hosts have the image; pulling on {shown or 'the others'}"

    def _pull(self, host: str) -> str:
        """Run the pull on *host*; return why it has failed, or nothing."""
        with self._lock:
            if self._stopped:
                return "not begun"
            process = subprocess.Popen(
                self._argv(host, *self._program, f"{self._limit:.0f}"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            self._running.add(process)
            self._percent[host] = 0
        # The host itself keeps the limit; this is for one that hangs.
        watchdog = threading.Timer(self._limit + SLACK, process.kill)
        watchdog.start()
        begin, error = time.monotonic(), ""
        with process:
            assert process.stdout and process.stderr  # noqa: S101, PT018  # both are PIPE
            for line in process.stdout:
                with contextlib.suppress(ValueError):
                    news = json.loads(line)
                    self._percent[host] = news.get("percent", self._percent[host])
                    error = news.get("error", error)
            said = " ".join(process.stderr.read().split())
        watchdog.cancel()
        with self._lock:
            self._running.discard(process)
        if process.returncode and time.monotonic() - begin >= self._limit:
            return f"not done within {self._limit:.0f} s (registry.pull_timeout)"
        return (error or said or f"ended with {process.returncode}") if process.returncode else ""

    def _stop(self) -> None:
        """End what still runs: with its connection the host ends its pull."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()


def pull_limit(seconds: float, hosts: int) -> float:
    """Return the seconds that each of *hosts* gets: all of them share the registry, and the way to it."""
    return seconds * (1 + math.log2(max(1, hosts)))
