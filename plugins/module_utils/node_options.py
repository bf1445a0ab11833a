# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of ``hpc.dockerjob.job_node``, for the module and for the action that stands in for it."""

from __future__ import annotations

from typing import Any

from .container import DOCKER_HOST, ENTRYPOINT
from .infra import CHOICES
from .names import INFRA_HOST, RUNTIME_ROOT


def file_options(owner: str, mode: str) -> dict[str, Any]:
    """Options of a file whose owner and mode default to these."""
    return {
        "name": {"type": "str", "required": True},
        "content_b64": {"type": "str", "required": True, "no_log": True},
        "mode": {"type": "str", "default": mode},
        "owner": {"type": "str", "choices": ["root", "user"], "default": owner},
    }


MOUNT = {
    "source": {"type": "path", "required": True},
    "target": {"type": "path", "required": True},
    "read_only": {"type": "bool", "default": False},
    "propagation": {
        "type": "str",
        "choices": ["private", "rprivate", "shared", "rshared", "slave", "rslave"],
        "default": "rprivate",
    },
}

ULIMIT = {
    "name": {"type": "str", "required": True},
    "soft": {"type": "int", "required": True},
    "hard": {"type": "int", "required": True},
}

LIMITS = {
    "memory": {"type": "int"},
    "swap": {"type": "int", "default": 0},
    "cpus": {"type": "float"},
    "cpuset": {"type": "str"},
    "cpuset_of": {"type": "list", "elements": "str", "default": []},
    "shm_size": {"type": "int"},
    "tmp_size": {"type": "int"},
    "pids": {"type": "int"},
    "ulimits": {"type": "list", "elements": "dict", "default": [], "options": ULIMIT},
}

DEVICE = {
    # Not a path: of Ansible's paths ~ and $ are expanded.
    "path": {"type": "str", "required": True},
    "required": {"type": "bool", "default": True},
    "permit": {"type": "str", "choices": ["always", "batch"], "default": "always"},
}

GPUS = {
    "driver": {"type": "str", "choices": ["cdi", "nvidia"], "default": "cdi"},
    "names": {"type": "list", "elements": "str", "required": True},
}

OVERLAY = {
    "file": {"type": "str", "required": True},
    "target": {"type": "path", "required": True},
}

SPEC = {
    "node_index": {"type": "int", "required": True},
    "image": {"type": "str", "required": True},
    "uid": {"type": "int", "required": True},
    "gid": {"type": "int", "required": True},
    "groups": {"type": "list", "elements": "int", "default": []},
    "hostname": {"type": "str"},
    "entrypoint": {"type": "list", "elements": "str", "default": list(ENTRYPOINT)},
    "env": {"type": "dict", "default": {}},
    "mounts": {"type": "list", "elements": "dict", "default": [], "options": MOUNT},
    "files": {"type": "list", "elements": "dict", "default": [], "options": file_options("root", "0444")},
    "writable_files": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": file_options("user", "0644"),
    },
    "overlays": {"type": "list", "elements": "dict", "default": [], "options": OVERLAY},
    "infra": {"type": "str", "choices": list(CHOICES), "default": "image"},
    "infra_directory": {"type": "path", "default": INFRA_HOST},
    "injected_overlays": {"type": "list", "elements": "dict", "default": [], "options": OVERLAY},
    "interface": {"type": "str", "default": "eth1"},
    "address": {"type": "str", "required": True},
    "vlan": {"type": "int", "required": True},
    "mtu": {"type": "int", "default": 1500},
    "limits": {"type": "dict", "options": LIMITS},
    "seccomp_profile": {"type": "path"},
    "apparmor_profile": {"type": "str"},
    "devices": {"type": "list", "elements": "dict", "default": [], "options": DEVICE},
    "device_cgroups": {"type": "list", "elements": "str", "default": []},
    "gpus": {"type": "dict", "options": GPUS},
    "labels": {"type": "dict", "default": {}},
}

ARGUMENTS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "job_id": {"type": "str", "required": True},
    "run": {"type": "str"},
    "runtime_root": {"type": "path", "default": RUNTIME_ROOT},
    "bridge": {"type": "str", "default": "br-job"},
    "docker_host": {"type": "str", "default": DOCKER_HOST},
    "spec": {"type": "dict", "options": SPEC},
}

REQUIRED_IF = [("state", "present", ("spec",))]
