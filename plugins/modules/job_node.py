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
  - Flows of the bridge let it send ARP and IPv4 from its own addresses only, see M(hpc.dockerjob.ovs_docker_port).
  - If a step fails, what the job had on this host is removed and the module fails with one line that says why.
  - With O(state=absent) it removes by mark whatever the host holds of the job, also what a broken set-up left.
attributes:
  check_mode:
    description: Says what would change without changing it.
    support: full
  diff_mode:
    description: Shows containers, ports, flows, links and the job's directory before and after.
    support: full
  idempotent:
    description:
      - A container that runs and was made from the same specification and files is left alone, its port and the
        bridge's flows are repaired if need be.
    support: full
requirements:
  - Docker SDK for Python (C(docker) 5.0.3 or later)
  - C(ovs-vsctl), C(ovs-ofctl), C(ip), C(nsenter) and C(ethtool)
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
  run:
    description:
      - The run of the job, by which the batch system's second start of the same job can be told from the first.
      - With O(state=present) what is made is marked with it, with O(state=absent) only what carries this mark is
        removed, or no mark at all. Without it, whatever is of the job is removed.
    type: str
  runtime_root:
    description:
      - Directory below which the jobs' directories lie.
      - Its subdirectory C(relay), with the socket of the etcd relay, is mounted into each container.
    type: path
    default: /run/dockerjob
  bridge:
    description:
      - The Open vSwitch bridge of the job networks, which M(hpc.dockerjob.ovs_bridge) has seen to.
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
      infra:
        description:
          - Where the agent, its Python, ssh server and client are from.
          - With V(image) from a layer of the image, with V(injected) from the host, which mounts what the role
            P(hpc.dockerjob.job_infra#role) brought to C(/opt/dockerjob), read-only.
          - With V(auto) from the host, and where that has none, from the layer if the image has one by its label
            C(dockerjob.infra).
        type: str
        choices: [auto, image, injected]
        default: image
      infra_directory:
        description: The host's directory with that infrastructure, or a link to it.
        type: path
        default: /opt/dockerjob-infra/current
      injected_overlays:
        description:
          - Files of the job's directory that take the place of O(spec.overlays) with the same target, if the host's
            infrastructure is used.
        type: list
        elements: dict
        default: []
        suboptions:
          file:
            description: Path in the job's directory.
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
        description: The node's IPv4 address with prefix length.
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
            description: Bytes of memory.
            type: int
          swap:
            description: Bytes of swap beyond O(spec.limits.memory), if that is set.
            type: int
            default: 0
          cpus:
            description: CPU time per time; it may be more than the host has.
            type: float
          cpuset:
            description: CPUs the container runs on, such as V(0-3,8).
            type: str
          cpuset_of:
            description:
              - Patterns of a cgroup that the batch system has for the job on this host, below a mount point of cgroups.
              - If there is one, and O(spec.limits.cpuset) is not set, the container runs on the CPUs of this cgroup.
            type: list
            elements: str
            default: []
          shm_size:
            description: Bytes of C(/dev/shm).
            type: int
          tmp_size:
            description:
              - Bytes of C(/tmp) and of C(/var/tmp), each; 1 GiB if not set.
              - They are in memory, and no other part of the image can be written.
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
      apparmor_profile:
        description:
          - Name of an AppArmor profile that is loaded on the host.
          - If not set, the Docker daemon uses C(docker-default) where the host has AppArmor.
        type: str
      devices:
        description:
          - Character devices of the host. What opens the host itself, such as memory, terminals or disks, is refused
            whatever its path is.
        type: list
        elements: dict
        default: []
        suboptions:
          path:
            description:
              - Path of a device, of a directory with all devices below it, or a pattern such as V(/dev/nvidia[0-9]*).
              - A link is refused, and left out where a pattern or a directory has one.
            type: str
            required: true
          required:
            description: Whether it is an error if the host has no such device.
            type: bool
            default: true
          permit:
            description:
              - With V(batch), only those that the batch system permits to the job, see O(spec.device_cgroups).
            type: str
            choices: [always, batch]
            default: always
      device_cgroups:
        description:
          - Patterns of a cgroup that the batch system has for the job on this host, below the mount point of the
            controller C(devices) of cgroup v1. What its C(devices.list) has is permitted.
        type: list
        elements: str
        default: []
      gpus:
        description: GPUs of the host.
        type: dict
        suboptions:
          driver:
            description: V(cdi) for the Docker daemon's own way, V(nvidia) for NVIDIA's runtime.
            type: str
            choices: [cdi, nvidia]
            default: cdi
          names:
            description: Their CDI names, such as V(nvidia.com/gpu=all).
            type: list
            elements: str
            required: true
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
    last_output_b64:
      description:
        - The last two entries of its log, standard output and standard error, each in base64.
        - Empty if it was still running.
      type: list
      elements: str
    exit_status:
      description: COMMAND's exit status as the agent left it, V(none) if it left none.
      type: str
    agent_log:
      description: The last 200 lines of the agent's log, V(none) if there is none.
      type: str
usage:
  description:
    - What the job has used on this host, all processes that it had; V(none) where the host does not tell.
    - CPU, memory and devices are those of the job's cgroup, which the role P(hpc.dockerjob.job_host#role) prepares.
  type: dict
  returned: O(state=absent) and not in check mode
  contains:
    cpu:
      description: Seconds of CPU time.
      type: float
      sample: 31.25
    cpu_user:
      description: Those in user mode.
      type: float
    cpu_system:
      description: Those in the kernel.
      type: float
    memory:
      description: The most bytes of memory at a time, what the kernel caches of files included.
      type: int
    block_read:
      description: Bytes read from block devices.
      type: int
    block_written:
      description: Bytes written to block devices.
      type: int
    network_received:
      description: Bytes of frames that the container got.
      type: int
    network_sent:
      description: Bytes of frames that it sent.
      type: int
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

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.node_options import ARGUMENTS, REQUIRED_IF
from ..module_utils.node_task import perform


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, required_if=REQUIRED_IF, supports_check_mode=True)
    result = perform(module.params, check_mode=module.check_mode)
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
