# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private dockerd to build images with: own data root, socket, containerd and mount namespace.

It neither touches nor needs a Docker installation that already runs on the machine:
no bridge, no iptables rules, no service manager.  The data root stays, so layers are
cached between builds; the daemon lives only as long as the ``with`` block.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STATE = Path(os.environ.get("DOCKERJOB_LAB_IMAGES", "/var/lib/dockerjob-lab/images"))
"""Where images are built and kept; a second checkout with other sources needs another one."""

DOCKERD = "/usr/sbin/dockerd"
DOCKER = "/usr/bin/docker"
START_TIMEOUT = 30.0


class BuildError(Exception):
    """An image could not be built; the message says which step and shows its last lines."""


@dataclass(frozen=True)
class Docker:
    """The docker client bound to one daemon's socket."""

    host: str

    def run(
        self, *arguments: str, stdin: int | None = None, log: Path | None = None, timeout: float = 3600
    ) -> str:
        """Run one docker command and return its stdout.

        Args:
            arguments: The command line after ``docker``.
            stdin: File descriptor to read from; none by default.
            log: File that gets stdout and stderr instead, for long builds.
            timeout: Seconds after which the command counts as failed.

        Raises:
            BuildError: The command failed; the message ends in its last lines.
        """
        argv = [DOCKER, "--host", self.host, *arguments]
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(log.open("ab")) if log else subprocess.PIPE
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=output,
                stderr=subprocess.STDOUT if log else subprocess.PIPE,
                env=_client_environment(),
                check=False,
                timeout=timeout,
            )
        if done.returncode:
            text = log.read_bytes() if log else done.stderr
            raise BuildError(f"docker {arguments[0]} failed:\n{_tail(text)}")
        return "" if log else done.stdout.decode()

    def image_id(self, reference: str) -> str | None:
        """Return the id (``sha256:...``) of a local image, or None."""
        try:
            return self.run("image", "inspect", "--format", "{{.Id}}", reference, timeout=60).strip()
        except BuildError:
            return None


def _client_environment() -> dict[str, str]:
    """Environment for the client: the classic builder, which every Docker since 1.12 has."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
    return {**kept, "DOCKER_BUILDKIT": "0", "DOCKER_CLI_HINTS": "false"}


def _tail(text: bytes, lines: int = 30) -> str:
    return "\n".join(text.decode(errors="replace").splitlines()[-lines:])


def dockerd_command(data_root: Path, run_directory: Path, extra: Sequence[str] = ()) -> list[str]:
    """Build the command line of a daemon that keeps to its own directories."""
    return [
        DOCKERD,
        f"--data-root={data_root}",
        f"--exec-root={run_directory}/exec",
        f"--pidfile={run_directory}/docker.pid",
        f"--host=unix://{run_directory}/docker.sock",
        # containerd asks for a negative score by default, which needs CAP_SYS_RESOURCE.
        "--oom-score-adjust=0",
        "--log-level=warn",
        *extra,
    ]


@contextlib.contextmanager
def private_dockerd(
    data_root: Path,
    extra: Sequence[str] = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false"),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Docker]:
    """Run a dockerd on *data_root* for the time of the ``with`` block.

    One at a time per data root: a second caller waits until the first has finished.

    Raises:
        BuildError: The daemon did not come up; the message shows its log.
    """
    data_root.mkdir(parents=True, exist_ok=True)
    with (data_root.parent / f".{data_root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Unix socket paths are limited to 107 bytes, so not below the data root.
        run_directory = Path(tempfile.mkdtemp(prefix="dockerjob-build-", dir="/run"))
        log_path = data_root.parent / f"{data_root.name}.log"
        with log_path.open("wb") as log:
            daemon = subprocess.Popen(
                [
                    # Else it would keep the data root from the next build when this one is killed.
                    *("setpriv", "--pdeathsig", "TERM"),
                    "unshare",
                    "--mount",
                    "--propagation",
                    "private",
                    *dockerd_command(data_root, run_directory, extra),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=dict(environment) if environment is not None else None,
            )
        docker = Docker(f"unix://{run_directory}/docker.sock")
        try:
            _wait_until_up(docker, daemon, log_path)
            yield docker
        finally:
            _stop(daemon)
            shutil.rmtree(run_directory, ignore_errors=True)


def _wait_until_up(docker: Docker, daemon: subprocess.Popen[bytes], log_path: Path) -> None:
    """Wait until the daemon answers on its socket."""
    deadline = time.monotonic() + START_TIMEOUT
    socket_path = Path(docker.host.removeprefix("unix://"))
    while time.monotonic() < deadline and daemon.poll() is None:
        if socket_path.exists():
            with contextlib.suppress(BuildError, subprocess.TimeoutExpired):
                docker.run("version", "--format", "{{.Server.Version}}", timeout=10)
                return
        time.sleep(0.05)
    raise BuildError(
        f"dockerd did not come up; the end of its log {log_path}:\n{_tail(log_path.read_bytes())}"
    )


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    """End the daemon in order; it stops its containerd itself."""
    if daemon.poll() is None:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait(timeout=10)
