# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each host is told: the node's container, its files and its place in the network.

Everything here is built from the site's configuration and proven facts.  The user's own
text (COMMAND, JOBDIR, variables) goes into files that are base64 on the way, so that no
template, shell or Docker option ever sees it.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from dockerjob_agent.ssh import ssh_config
from dockerjob_core import names
from dockerjob_core.allocation import HostSlots
from dockerjob_core.ipam import JobNetwork
from dockerjob_core.jobtree import JobTree

from ..config import Application, Config
from ..request import JobRequest
from ..schedulers import command_environment, job_cgroups
from .certificates import ClientCertificate
from .identity import Identity
from .limits import NodeLimits
from .policy import is_mounted

_MOUNTED_OVER = (
    ("rw/hosts", "/etc/hosts"),
    ("ro/passwd", "/etc/passwd"),
    ("ro/group", "/etc/group"),
    ("ro/ssh_config", "/etc/ssh/ssh_config"),
)
_INJECTED_OVER = (("ro/passwd_injected", "/etc/passwd"),)
"""An image that knows nothing of us need not have the user's shell, and sshd refuses a user whose shell is missing."""


@dataclasses.dataclass(frozen=True)
class JobPlan:
    """Everything known of a job before a host is asked to do anything.

    ``limits`` are those of the nodes by their hosts.  ``tree`` is the run in etcd, ``lifetime`` the
    seconds after which the agents end the job, whatever comes; the broker ends it before, at the end of
    its wall-clock.
    """

    config: Config
    identity: Identity
    request: JobRequest
    application: Application
    limits: Mapping[str, NodeLimits]
    network: JobNetwork
    tree: JobTree
    lifetime: float
    certificate: ClientCertificate

    @property
    def job_id(self) -> str:
        """The job id of the allocation."""
        return self.request.job_id

    def host_specs(self) -> dict[str, dict[str, Any]]:
        """Return, per host name, the ``spec`` option of the module ``job_node``."""
        nodes = self._nodes()
        return {
            host.name: self._host_spec(index, nodes)
            for index, host in enumerate(self.request.allocation.hosts)
        }

    def _nodes(self) -> list[dict[str, Any]]:
        return [self._node(index, host) for index, host in enumerate(self.request.allocation.hosts)]

    def _node(self, index: int, host: HostSlots) -> dict[str, Any]:
        return {
            "name": names.node_name(self.job_id, index),
            "host": host.name,
            "slots": host.slots,
            "address": self.network.address(index),
        }

    def _host_spec(self, index: int, nodes: list[dict[str, Any]]) -> dict[str, Any]:
        network, container = self.config.network, self.config.container
        prefix_length = self.network.prefix_length
        return {
            "node_index": index,
            "image": self.application.image,
            "uid": self.identity.uid,
            "gid": self.identity.gid,
            "groups": list(self.identity.groups),
            "hostname": nodes[index]["name"],
            "env": {},
            "mounts": [
                {
                    "source": mount.path,
                    "target": mount.path,
                    "read_only": mount.read_only,
                    "propagation": mount.propagation,
                }
                for mount in self.config.mounts
            ],
            "files": self._files(index, nodes, prefix_length),
            # Mounted over /etc/hosts, so it must be there before the agent writes it.
            "writable_files": [_file("hosts", b"127.0.0.1 localhost\n", mode="0644", owner="user")],
            "overlays": [{"file": file, "target": target} for file, target in _MOUNTED_OVER],
            "infra": self.application.infra,
            "injected_overlays": [{"file": file, "target": target} for file, target in _INJECTED_OVER],
            "interface": network.interface,
            "address": f"{nodes[index]['address']}/{prefix_length}",
            "vlan": self.network.vlan,
            "mtu": network.mtu,
            "limits": self._limits(nodes[index]["host"]),
            "seccomp_profile": container.seccomp_profile,
            "apparmor_profile": container.apparmor_profile,
            **self._devices(),
        }

    def _devices(self) -> dict[str, Any]:
        application, container = self.request.application, self.config.container
        gpus = container.gpus
        return {
            "devices": [device.rule() for device in container.devices if device.has(application)],
            "device_cgroups": list(job_cgroups(self.request.allocation, self.identity.uid)),
            "gpus": gpus.request() if gpus and gpus.has(application) else None,
        }

    def _limits(self, host: str) -> dict[str, Any]:
        container = self.config.container
        return {
            **dataclasses.asdict(self.limits[host]),
            "cpuset_of": list(job_cgroups(self.request.allocation, self.identity.uid)),
            "shm_size": container.shm_size,
            "tmp_size": container.tmp_size,
            "pids": container.pids,
            "ulimits": [ulimit.model_dump() for ulimit in container.ulimits],
        }

    def _files(self, index: int, nodes: list[dict[str, Any]], prefix_length: int) -> list[dict[str, Any]]:
        spec = {
            "job_id": self.job_id,
            "node_index": index,
            "nodes": nodes,
            "interface": self.config.network.interface,
            "prefix_length": prefix_length,
            "jobdir": self.request.jobdir,
            "hostfile": self.request.hostfile or self.application.hostfile,
            "shell": self.identity.shell,
            "lease_id": self.tree.lease_id,
            "lifetime": round(self.lifetime, 3),
            "discovery_timeout": self.config.limits.discovery_timeout,
            "ssh_port": 2222,
            "verbose": self.request.verbose,
            "terminal": self.request.terminal is not None,
            "etcd": {"socket": names.RELAY_SOCKET, "server_name": self.config.etcd.server_name},
        }
        ca = PurePosixPath(self.config.etcd.ca)
        return [
            _file("spec.json", json.dumps(spec).encode()),
            _file("command", self.request.command),
            _file("environment.json", json.dumps(self._environment()).encode()),
            _file("passwd", self.identity.passwd(self.home).encode()),
            _file("passwd_injected", self._injected_passwd()),
            _file("group", self.identity.group().encode()),
            _file("ssh_config", ssh_config(names.CONTAINER_WRITABLE).encode()),
            _file("ca.pem", _read(ca)),
            _file("cert.pem", self.certificate.cert),
            _file("key.pem", self.certificate.key, mode="0400", owner="user"),
        ]

    @property
    def home(self) -> str:
        """HOME in the containers: the user's own where it is mounted, else JOBDIR."""
        return self.identity.home if is_mounted(self.config, self.identity.home) else self.request.jobdir

    def _injected_passwd(self) -> bytes:
        stand_in = dataclasses.replace(self.identity, shell=names.login_shell(self.identity.shell))
        return stand_in.passwd(self.home).encode()

    def _environment(self) -> dict[str, str]:
        allocation, terminal = self.request.allocation, self.request.terminal
        return {
            **({"TERM": terminal.kind} if terminal else {}),
            **self.config.container.environment,
            **self.request.environment,
            "HOME": self.home,
            "USER": self.identity.name,
            "LOGNAME": self.identity.name,
            "SHELL": self.identity.shell,
            **command_environment(allocation),
            "DOCKERJOB_JOB": self.job_id,
            "JOBDIR": self.request.jobdir,
        }


def _file(name: str, content: bytes, mode: str = "0444", owner: str = "root") -> dict[str, Any]:
    return {"name": name, "content_b64": base64.b64encode(content).decode(), "mode": mode, "owner": owner}


def _read(path: PurePosixPath) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()
