# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the job playbooks through ansible-runner and says what became of each host."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ansible_runner  # type: ignore[import-untyped]  # ships no type information
from dockerjob_core.allocation import inventory_of
from dockerjob_core.errors import HostError

from ..config import Config
from ..request import JobRequest
from .connections import Connections

NODE_TASK = "hpc.dockerjob.job_node"


@dataclasses.dataclass
class HostResults:
    """What the module ``job_node`` returned per host, and one line per host that failed."""

    returned: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def collect(self, event: Mapping[str, Any]) -> bool:
        """Take in one event of ansible-runner; False: it need not be written to disk."""
        data = event.get("event_data", {})
        host, result = data.get("host"), data.get("res") or {}
        kind = event.get("event")
        if kind == "runner_on_ok" and data.get("resolved_action", data.get("task_action")) == NODE_TASK:
            self.returned[host] = result
        elif kind == "runner_on_failed":
            self.failed[host] = " ".join(str(result.get("msg", "failed")).split())
        elif kind == "runner_on_unreachable":
            self.failed[host] = " ".join(str(result.get("msg", "unreachable")).split())
        return False


@dataclasses.dataclass(frozen=True)
class Playbooks:
    """The job playbooks of one job, run with the hosts of its allocation as inventory."""

    config: Config
    request: JobRequest
    connections: Connections
    directory: Path

    def run(
        self,
        playbook: str,
        host_specs: Mapping[str, Mapping[str, Any]],
        cancelled: Callable[[], bool],
        timeout: float,
    ) -> HostResults:
        """Run ``playbooks/<playbook>`` on the hosts of the allocation.

        Args:
            playbook: file name.
            host_specs: per host, the spec for ``job_node``; empty for a teardown.
            cancelled: polled while it runs; true ends it.
            timeout: seconds after which it is ended.

        Raises:
            HostError: Ansible itself failed, so nothing is known of the hosts.
        """
        results = HostResults()
        private = self.directory / "runner"
        runner = ansible_runner.run(
            private_data_dir=str(private),
            playbook=str(collection_directory() / "playbooks" / playbook),
            inventory=str(self._write_inventory(private, host_specs)),
            envvars=self._environment(private),
            settings={"suppress_ansible_output": True, "idle_timeout": 0, "job_timeout": int(timeout)},
            event_handler=results.collect,
            cancel_callback=cancelled,
            cmdline="--tags hosts",
            quiet=True,
        )
        expected = {host.name for host in self.request.allocation.hosts}
        silent = expected - set(results.returned) - set(results.failed)
        # A playbook that matched no host counts as successful to Ansible; to us it does not.
        for host in silent:
            results.failed[host] = f"{playbook} ended ({runner.status}) before this host was done"
        if runner.status != "successful" and not results.failed:
            raise HostError(f"{playbook} ended with status {runner.status}")
        return results

    def _write_inventory(self, private: Path, host_specs: Mapping[str, Mapping[str, Any]]) -> Path:
        variables = {
            host.name: {
                "ansible_host": self.config.hosts[host.name].address,
                "dockerjob_node_spec": dict(host_specs.get(host.name, {})),
            }
            for host in self.request.allocation.hosts
        }
        inventory = inventory_of(self.request.allocation, variables)
        settings = self.config.ansible
        inventory["all"]["children"]["allocation"]["vars"].update(
            ansible_user=settings.user,
            ansible_ssh_private_key_file=settings.private_key,
            ansible_python_interpreter=settings.python_interpreter,
            dockerjob_bridge=self.config.network.bridge,
        )
        path = private / "hosts.json"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
        ) as stream:
            json.dump(inventory, stream)
        return path

    def _environment(self, private: Path) -> dict[str, str]:
        return {
            "ANSIBLE_COLLECTIONS_PATH": str(collection_directory().parents[2]),
            "ANSIBLE_FORKS": str(min(64, max(5, len(self.request.allocation.hosts)))),
            "ANSIBLE_HOME": str(private / "home"),
            "ANSIBLE_INJECT_FACT_VARS": "False",
            "ANSIBLE_INVENTORY_ENABLED": "yaml",
            "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
            "ANSIBLE_NOCOLOR": "True",
            "ANSIBLE_PIPELINING": "True",
            "ANSIBLE_SSH_ARGS": " ".join(["-F", "none", *self.connections.options()]),
            "ANSIBLE_SSH_CONTROL_PATH": self.connections.control_path.replace("%", "%%"),
            "HOME": str(private),
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        }


def collection_directory() -> Path:
    """Directory of the installed collection, beside the environment this program runs in."""
    return Path(sys.prefix) / "ansible_collections" / "hpc" / "dockerjob"
