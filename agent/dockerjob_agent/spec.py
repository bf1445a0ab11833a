# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent is told about its job: the root-owned files below :data:`READ_ONLY`.

Parsed once, here; the rest of the agent sees frozen dataclasses only.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dockerjob_core import names
from dockerjob_core.errors import ConfigError

READ_ONLY = Path(names.CONTAINER_READ_ONLY)
WRITABLE = Path(names.CONTAINER_WRITABLE)


@dataclass(frozen=True)
class Node:
    """A node of the job, in the order of the allocation; node 0 is the master."""

    index: int
    name: str
    host: str
    slots: int
    address: str


@dataclass(frozen=True)
class JobSpec:
    """One node's view of its job, as the broker wrote it.

    ``terminal`` says that COMMAND shall have one.

    ``lifetime`` is how many seconds the node may live; no time of day, since hosts differ in that.
    """

    job_id: str
    node_index: int
    nodes: tuple[Node, ...]
    interface: str
    prefix_length: int
    jobdir: str
    hostfile: str | None
    shell: str
    lease_id: int
    lifetime: float | None
    discovery_timeout: float
    ssh_port: int
    verbose: bool
    terminal: bool
    etcd_target: str
    etcd_server_name: str

    @property
    def me(self) -> Node:
        """The node this agent is."""
        return self.nodes[self.node_index]

    @property
    def is_master(self) -> bool:
        """Whether this node runs COMMAND."""
        return self.node_index == 0


def parse(text: str) -> JobSpec:
    """Parse the text of ``spec.json``.

    Raises:
        ConfigError: A field is missing or makes no sense; the message names it.
    """
    try:
        raw: dict[str, Any] = json.loads(text)
        nodes = tuple(
            Node(index, str(node["name"]), str(node["host"]), int(node["slots"]), str(node["address"]))
            for index, node in enumerate(raw["nodes"])
        )
        spec = JobSpec(
            job_id=names.check_job_id(raw["job_id"]),
            node_index=int(raw["node_index"]),
            nodes=nodes,
            interface=str(raw["interface"]),
            prefix_length=int(raw["prefix_length"]),
            jobdir=str(raw["jobdir"]),
            hostfile=None if raw.get("hostfile") is None else str(raw["hostfile"]),
            shell=str(raw["shell"]),
            lease_id=int(raw["lease_id"]),
            lifetime=None if raw.get("lifetime") is None else float(raw["lifetime"]),
            discovery_timeout=float(raw["discovery_timeout"]),
            ssh_port=int(raw["ssh_port"]),
            verbose=bool(raw.get("verbose", False)),
            terminal=bool(raw.get("terminal", False)),
            etcd_target="unix:" + str(raw["etcd"]["socket"]),
            etcd_server_name=str(raw["etcd"]["server_name"]),
        )
    except KeyError as error:
        raise ConfigError(f"spec.json lacks {error}") from error
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"spec.json is not valid: {error}") from error
    _check(spec)
    return spec


def _check(spec: JobSpec) -> None:
    """Raise ``ConfigError`` when the fields contradict each other."""
    if not 0 <= spec.node_index < len(spec.nodes):
        raise ConfigError(f"spec.json: node_index {spec.node_index} is not one of {len(spec.nodes)} nodes")
    for node in spec.nodes:
        if node.name != names.node_name(spec.job_id, node.index):
            raise ConfigError(f"spec.json: node {node.index} of job {spec.job_id} is called {node.name!r}")


def load(directory: Path = READ_ONLY) -> JobSpec:
    """Read ``spec.json`` of this node; its shell is one that there is.

    Raises:
        ConfigError: The file is missing or not valid.
    """
    path = directory / "spec.json"
    try:
        spec = parse(path.read_text())
        return replace(spec, shell=usable_shell(spec.shell))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; was this container started by the broker?"
        ) from error


def usable_shell(wanted: str, infra: str = names.INFRA_TARGET) -> str:
    """Return the shell that runs COMMAND: the user's where the image has it.

    Else it is ``/bin/sh``, and the portable infrastructure's own in an image that has no shell at all.
    An image with the infrastructure layer is held to what it promises: there it is always the user's.
    """
    portable = f"{infra}/bin/sh"
    if not os.path.exists(portable):
        return wanted
    return next((shell for shell in (wanted, "/bin/sh") if os.access(shell, os.X_OK)), portable)


def load_environment(directory: Path = READ_ONLY) -> dict[str, str]:
    """Read the environment that the user's request gives to COMMAND; none if there is no file."""
    path = directory / "environment.json"
    try:
        raw = json.loads(path.read_text())
        return {str(name): str(value) for name, value in raw.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid: {error}") from error
