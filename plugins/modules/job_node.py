#!/usr/bin/python
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: a job's node on a host, whole or gone."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: job_node
short_description: A job's node on a host, whole or gone
version_added: "0.1.0"
author:
  - the hpc.dockerjob authors (@hpc-dockerjob)
description:
  - Makes all that a job has on one host in a single task, since every task on the way of a job costs about a second.
  - That is the job's directory with its files, the node's container, and its port in the job network.
  - The container runs as the user from its first process, with no capability, no new privileges and no network
    but the port.
    No option loosens this.
  - If a step fails, what the job had on this host is removed and the module fails with one line that says why.
  - With O(state=absent) it removes by mark whatever the host holds of the job, also what a broken set-up left.
attributes:
  check_mode:
    description: Says what would change without changing it.
    support: full
  diff_mode:
    description: Shows containers, ports, links and the job's directory before and after.
    support: full
  idempotent:
    description:
      - A container that runs and was made from the same specification and files is left alone, its port is repaired
        if need be.
    support: full
requirements:
  - Docker SDK for Python (C(docker) 5.0.3 or later)
  - C(ovs-vsctl), C(ip), C(nsenter) and C(ethtool)
options:
  state:
    description:
      - With V(present) the node runs and is connected, with V(absent) the host holds nothing of the job.
    type: str
    choices: [present, absent]
    default: present
  job_id:
    description:
      - The job's id, C(number) or C(number_index) for an element of an array.
    type: str
    required: true
  runtime_root:
    description:
      - Directory below which the jobs' directories lie.
      - Its subdirectory C(relay), with the socket of the etcd relay, is mounted into each container.
    type: path
    default: /run/dockerjob
  bridge:
    description:
      - The Open vSwitch bridge of the job networks.
    type: str
    default: br-job
  docker_host:
    description:
      - Address of the Docker daemon.
    type: str
    default: unix:///var/run/docker.sock
  spec:
    description:
      - What the node is made from.
      - Required if O(state=present).
    type: dict
    suboptions:
      node_index:
        description: Number of the node in its job; node 0 is the master.
        type: int
        required: true
      image:
        description: Image id or reference; it must be on the host already.
        type: str
        required: true
      uid:
        description: The user's uid.
        type: int
        required: true
      gid:
        description: The user's primary gid.
        type: int
        required: true
      groups:
        description: The user's supplementary gids.
        type: list
        elements: int
        default: []
      hostname:
        description: Host name in the container; the node's name if not set.
        type: str
      entrypoint:
        description: Program and arguments of the first process.
        type: list
        elements: str
        default: [/opt/dockerjob/bin/dockerjob-agent, init]
      env:
        description: Environment of the first process.
        type: dict
        default: {}
      mounts:
        description:
          - Directories and files of the host to be seen in the container.
          - The job's directory and that of the relay are mounted without being listed here.
        type: list
        elements: dict
        default: []
        suboptions:
          source:
            description: Path on the host.
            type: path
            required: true
          target:
            description: Path in the container.
            type: path
            required: true
          read_only:
            description: Whether the container may only read there.
            type: bool
            default: false
          propagation:
            description: Whether mounts made later below O(spec.mounts[].source) appear in the container.
            type: str
            choices: [private, rprivate, shared, rshared, slave, rslave]
            default: rprivate
      files:
        description:
          - Files in the part of the job's directory that is root's, read-only in the container.
          - Never shown, as a key may be among them.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: Name, without a directory.
            type: str
            required: true
          content_b64:
            description: Content in base64.
            type: str
            required: true
          mode:
            description: Permission bits, in octal.
            type: str
            default: "0444"
          owner:
            description: Whether the file belongs to root or to the user.
            type: str
            choices: [root, user]
            default: root
      writable_files:
        description:
          - Files in the part of the job's directory that is the user's.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: Name, without a directory.
            type: str
            required: true
          content_b64:
            description: Content in base64.
            type: str
            required: true
          mode:
            description: Permission bits, in octal.
            type: str
            default: "0644"
          owner:
            description: Whether the file belongs to root or to the user.
            type: str
            choices: [root, user]
            default: user
      overlays:
        description:
          - Files of the job's directory that are mounted over files of the image.
        type: list
        elements: dict
        default: []
        suboptions:
          file:
            description: Path in the job's directory, such as V(rw/hosts); what lies in C(ro) is mounted read-only.
            type: str
            required: true
          target:
            description: Path in the container.
            type: path
            required: true
      interface:
        description: Name of the interface in the container.
        type: str
        default: eth1
      address:
        description: The node's address with prefix length.
        type: str
        required: true
      vlan:
        description: VLAN of the job network.
        type: int
        required: true
      mtu:
        description: Largest packet of the job network.
        type: int
        default: 1500
      limits:
        description: What of the host the container may use; what is not set is not limited.
        type: dict
        suboptions:
          memory:
            description: Bytes of memory; there is no swap beyond.
            type: int
          cpus:
            description: CPU time per time.
            type: float
          cpuset:
            description: CPUs the container runs on, such as V(0-3,8).
            type: str
          shm_size:
            description: Bytes of C(/dev/shm).
            type: int
          pids:
            description: Number of processes and threads.
            type: int
          ulimits:
            description: Resource limits as in C(setrlimit(2)).
            type: list
            elements: dict
            default: []
            suboptions:
              name:
                description: Name in lower case, such as V(memlock).
                type: str
                required: true
              soft:
                description: Soft limit, V(-1) for none.
                type: int
                required: true
              hard:
                description: Hard limit, V(-1) for none.
                type: int
                required: true
      seccomp_profile:
        description: Path of a seccomp profile on the host; the Docker daemon's default if not set.
        type: path
      devices:
        description: Devices of the host, or directories of them.
        type: list
        elements: path
        default: []
      labels:
        description: Further labels of the container.
        type: dict
        default: {}
"""

EXAMPLES = r"""
- name: Start the job's node
  hpc.dockerjob.job_node:
    job_id: "748"
    spec:
      node_index: 0
      image: openfoam:2.3.0
      uid: 1000
      gid: 1000
      address: 10.128.0.1/24
      vlan: 100
      files:
        - name: command
          content_b64: "{{ 'mpirun simpleFoam -parallel' | b64encode }}"
      overlays:
        - file: rw/hosts
          target: /etc/hosts

- name: Take the job's node down
  hpc.dockerjob.job_node:
    job_id: "748"
    state: absent
"""

RETURN = r"""
job_id:
  description: The job.
  type: str
  returned: success
  sample: "748"
container:
  description: The node's container.
  type: dict
  returned: O(state=present) and not in check mode
  contains:
    name:
      description: Its name.
      type: str
      sample: 748_node_0
    id:
      description: Its id.
      type: str
    pid:
      description: Process id of its first process on the host.
      type: int
nodes:
  description: How each node that was removed had ended.
  type: list
  elements: dict
  returned: O(state=absent) and not in check mode
  contains:
    name:
      description: The node, V(none) if its container was gone already.
      type: str
    running:
      description: Whether it was still running and was killed.
      type: bool
    exit_code:
      description: Exit status of its first process, V(none) if that was running.
      type: int
    oom_killed:
      description: Whether the kernel killed one of its processes because memory ran out.
      type: bool
    exit_status:
      description: COMMAND's exit status as the agent left it, V(none) if it left none.
      type: str
    agent_log:
      description: The last 200 lines of the agent's log, V(none) if there is none.
      type: str
steps:
  description: What the module did, with the time it took.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: The step.
      type: str
      sample: container
    ms:
      description: Milliseconds.
      type: float
      sample: 312.5
"""

import traceback
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ..module_utils import node
from ..module_utils.container import DOCKER_HOST, ENTRYPOINT, Engine
from ..module_utils.errors import DockerjobError
from ..module_utils.jobdir import JobDirectory
from ..module_utils.names import RUNTIME_ROOT, check_job_id


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
    "cpus": {"type": "float"},
    "cpuset": {"type": "str"},
    "shm_size": {"type": "int"},
    "pids": {"type": "int"},
    "ulimits": {"type": "list", "elements": "dict", "default": [], "options": ULIMIT},
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
    "interface": {"type": "str", "default": "eth1"},
    "address": {"type": "str", "required": True},
    "vlan": {"type": "int", "required": True},
    "mtu": {"type": "int", "default": 1500},
    "limits": {"type": "dict", "options": LIMITS},
    "seccomp_profile": {"type": "path"},
    "devices": {"type": "list", "elements": "path", "default": []},
    "labels": {"type": "dict", "default": {}},
}

ARGUMENTS = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "job_id": {"type": "str", "required": True},
    "runtime_root": {"type": "path", "default": RUNTIME_ROOT},
    "bridge": {"type": "str", "default": "br-job"},
    "docker_host": {"type": "str", "default": DOCKER_HOST},
    "spec": {"type": "dict", "options": SPEC},
}


def ensure(module: AnsibleModule, clock: node.Clock) -> dict[str, Any]:
    """Bring the node into the wanted state; return the module's result."""
    options = module.params
    job_id = check_job_id(options["job_id"])
    with clock.step("connect"):
        engine = Engine.connect(options["docker_host"])
    with engine:
        if options["state"] == "present":
            spec = node.parse(job_id, options["runtime_root"], options["bridge"], options["spec"])
            outcome = node.present(spec, engine, clock, check_mode=module.check_mode)
        else:
            directory = JobDirectory(job_id, options["runtime_root"])
            outcome = node.absent(directory, engine, clock, check_mode=module.check_mode)
    result: dict[str, Any] = {"changed": outcome.changed, "job_id": job_id, "steps": clock.steps}
    result["diff"] = {"before": outcome.before, "after": outcome.after}
    if outcome.found:
        found = outcome.found
        result["container"] = {"name": found.name, "id": found.id, "pid": found.pid}
    if options["state"] == "absent":
        result["nodes"] = list(outcome.nodes)
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        required_if=[("state", "present", ("spec",))],
        supports_check_mode=True,
    )
    clock = node.Clock()
    try:
        result = ensure(module, clock)
    except ImportError:
        module.fail_json(msg=missing_required_lib("docker"), exception=traceback.format_exc())
    except (DockerjobError, ValueError) as error:
        module.fail_json(msg=str(error), steps=clock.steps)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
