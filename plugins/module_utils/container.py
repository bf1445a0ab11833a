# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container of a node: what it is made from, and its life at the Docker daemon.

The payload is that of the Engine API (POST /containers/create).  Nothing in it comes
from a user: the broker builds the specification from the site's policy, and whatever
bounds a container (no network, no capability, no new privileges, the user's uid) is
fixed here, with no option to loosen it.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from . import names
from .errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from docker import APIClient

DOCKER_HOST = "unix:///var/run/docker.sock"
ENTRYPOINT = (f"{names.INFRA_TARGET}/bin/dockerjob-agent", "init")

LOG_BYTES = 16 << 30
LOG_ENTRY_BYTES = 48
"""What an entry of the log takes besides its text, at most: a line, or 16 kB of a longer one."""

LOG: Mapping[str, Any] = {
    "Type": "local",
    "Config": {"max-size": str(LOG_BYTES), "max-file": "2", "compress": "false"},
}
"""Where the output waits for ``docker logs --follow``: in a format that keeps every byte, which JSON does not.

A follower loses lines when dockerd goes on to the next file (seen with 20.10), so it must never get there:
the broker ends a job that has written half as much.
"""

TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108  # in the container
"""Directories of a container that anyone may write in; in memory, and each of a limited size."""

CPU_PERIOD = 100_000
LEAST_QUOTA = 1_000
"""Microseconds: in each period the container may compute for its quota; the kernel takes no smaller one."""

Propagation = Literal["private", "rprivate", "shared", "rshared", "slave", "rslave"]
Payload = dict[str, Any]


@dataclass(frozen=True)
class Mount:
    """A directory or file of the host, seen in the container at *target*."""

    source: str
    target: str
    read_only: bool = False
    propagation: Propagation = "rprivate"


@dataclass(frozen=True)
class Ulimit:
    """A resource limit as setrlimit(2) has it; -1 is unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True)
class Limits:
    """What of the host the container may use; ``None`` sets no limit.

    ``swap`` is what it may have beyond ``memory``; without a limit of that there is none of swap either.
    """

    memory: int | None = None
    swap: int = 0
    cpus: float | None = None
    cpuset: str | None = None
    shm_size: int | None = None
    pids: int | None = None
    ulimits: tuple[Ulimit, ...] = ()
    tmp_size: int = 1 << 30


@dataclass(frozen=True)
class Gpus:
    """GPUs by their CDI names (``nvidia.com/gpu=all``), and who puts them into the container.

    ``cdi`` is the Docker daemon itself, from the host's CDI specifications; ``nvidia`` is NVIDIA's runtime.
    """

    driver: Literal["cdi", "nvidia"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class ContainerSpec:
    """All that a node's container is made from."""

    job_id: str
    node_index: int
    image: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    hostname: str | None = None
    entrypoint: tuple[str, ...] = ENTRYPOINT
    env: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    """Variables of the image that the first process shall not have."""
    mounts: tuple[Mount, ...] = ()
    temporary: tuple[str, ...] = ()
    """Directories besides :data:`TEMPORARY` that are as those are."""
    limits: Limits = field(default_factory=Limits)
    seccomp: str | None = None
    apparmor: str | None = None
    devices: tuple[str, ...] = ()
    gpus: Gpus | None = None
    cgroup_parent: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    run: str = ""

    @property
    def name(self) -> str:
        """The node's name is the container's."""
        return names.node_name(self.job_id, self.node_index)


@dataclass(frozen=True)
class Image:
    """An image as the daemon has it: its labels, the variables that its processes get, and its VOLUMEs."""

    labels: Mapping[str, str]
    env: Mapping[str, str]
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A container as the daemon has it."""

    id: str
    name: str
    labels: Mapping[str, str]
    running: bool
    pid: int
    exit_code: int | None
    oom_killed: bool

    @property
    def never_ran(self) -> bool:
        """Whether the daemon has only created it, or takes it for one that it has only created."""
        return not self.running and self.exit_code is None


def without_volumes(spec: ContainerSpec, image: Image) -> ContainerSpec:
    """Return *spec* with a temporary directory for each VOLUME of the image that is no mount already.

    Docker would make a directory on the host's disk for it, which the user may write to and no limit of the job bounds.

    Raises:
        HostError: one lies in what is mounted: root would make its mount point there, on the file system of the hosts.
    """
    targets = {mount.target.rstrip("/") for mount in spec.mounts}
    volumes = {posixpath.normpath(volume) for volume in image.volumes} - targets
    for volume in sorted(volumes):
        inside = next((target for target in targets if volume.startswith(f"{target}/")), None)
        if inside is not None:
            raise HostError(
                f"the image {spec.image} has VOLUME {volume}, and {inside} is the hosts'; use an image without it"
            )
    return replace(spec, temporary=tuple(sorted(volumes)))


def payload(spec: ContainerSpec, extra_digest: str = "") -> Payload:
    """Build the body of the create call, marked with a digest of itself and of *extra_digest*.

    Args:
        spec: what the container is made from.
        extra_digest: whatever else the container depends on (its job's files, its port).
    """
    body: Payload = {
        "Image": spec.image,
        "Hostname": spec.hostname or spec.name,
        "User": f"{spec.uid:d}:{spec.gid:d}",
        # A name alone takes the image's variable away.
        "Env": [
            *(f"{key}={value}" for key, value in sorted({**spec.env, **_gpu_environment(spec.gpus)}.items())),
            *spec.unset,
        ],
        "Entrypoint": list(spec.entrypoint),
        "Cmd": [],
        "WorkingDir": "/",
        # A health check of the image would start a process every few seconds beside the computation.
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(spec),
    }
    text = json.dumps([body, sorted(spec.labels.items()), spec.run, extra_digest], sort_keys=True)
    body["Labels"] = {
        **spec.labels,
        names.LABEL_JOB: spec.job_id,
        names.LABEL_NODE: spec.name,
        names.LABEL_RUN: spec.run,
        names.LABEL_SPEC: hashlib.sha256(text.encode()).hexdigest(),
    }
    return body


def _host_config(spec: ContainerSpec) -> Payload:
    security = ["no-new-privileges:true"]
    if spec.seccomp is not None:
        security.append(f"seccomp={spec.seccomp}")
    # Without a profile's name the daemon takes docker-default where the host has AppArmor.
    if spec.apparmor is not None:
        security.append(f"apparmor={spec.apparmor}")
    return {
        "NetworkMode": "none",
        "IpcMode": "private",
        "Privileged": False,
        "GroupAdd": [str(group) for group in spec.groups],
        "CapDrop": ["ALL"],
        "SecurityOpt": security,
        # What is written there would be on the daemon's disk, without a limit.
        "ReadonlyRootfs": True,
        "Tmpfs": dict.fromkeys(
            (*TEMPORARY, *spec.temporary), f"rw,exec,nosuid,nodev,mode=1777,size={spec.limits.tmp_size}"
        ),
        "Init": False,  # PID 1 is the agent, which reaps
        "RestartPolicy": {"Name": "no"},
        "LogConfig": LOG,
        "Mounts": [_mount(mount) for mount in spec.mounts],
        "Devices": [
            {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"} for path in spec.devices
        ],
        **_gpu_requests(spec.gpus),
        **({"CgroupParent": spec.cgroup_parent} if spec.cgroup_parent else {}),
        **_limits(spec.limits),
    }


def _gpu_requests(gpus: Gpus | None) -> Payload:
    if gpus is None:
        return {}
    if gpus.driver == "nvidia":
        return {"Runtime": "nvidia"}
    return {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": list(gpus.names)}]}


def _gpu_environment(gpus: Gpus | None) -> Mapping[str, str]:
    """Return what NVIDIA's runtime goes by, so that it is never what the image says.

    That would be all GPUs for most images with CUDA, and the runtime can be the daemon's default.
    """
    if gpus is None or gpus.driver != "nvidia":
        return {"NVIDIA_VISIBLE_DEVICES": "void"}
    devices = ",".join(name.rpartition("=")[2] for name in gpus.names)
    return {"NVIDIA_VISIBLE_DEVICES": devices, "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


def _mount(mount: Mount) -> Payload:
    return {
        "Type": "bind",
        "Source": mount.source,
        "Target": mount.target,
        "ReadOnly": mount.read_only,
        "BindOptions": {"Propagation": mount.propagation},
    }


def _limits(limits: Limits) -> Payload:
    """Name the limits as the Engine API does, leaving out those that are not set."""
    wanted: Payload = {
        "Memory": limits.memory,
        # Both together, so equal means: no swap.
        "MemorySwap": None if limits.memory is None else limits.memory + limits.swap,
        # Not NanoCpus, which the daemon refuses beyond what its host has: slots need not be CPUs.
        "CpuPeriod": None if limits.cpus is None else CPU_PERIOD,
        "CpuQuota": None if limits.cpus is None else max(LEAST_QUOTA, round(limits.cpus * CPU_PERIOD)),
        "CpusetCpus": limits.cpuset,
        "ShmSize": limits.shm_size,
        "PidsLimit": limits.pids,
        "Ulimits": [{"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard} for limit in limits.ulimits],
    }
    return {key: value for key, value in wanted.items() if value is not None}


class Engine:
    """The Docker daemon of this host; a context manager."""

    def __init__(self, client: APIClient, address: str) -> None:
        """Use *client*, which talks to the daemon at *address*; see :meth:`connect`."""
        self._client = client
        self._address = address

    @classmethod
    def connect(cls, address: str = DOCKER_HOST, timeout: int = 60) -> Engine:
        """Connect to the daemon at *address*.

        Raises:
            ImportError: there is no Docker SDK for Python; the module's edge says how to get it.
            HostError: the daemon does not answer.
        """
        from docker import APIClient  # 0.2 s: only who needs it pays for it

        with _translated(address):
            return cls(APIClient(base_url=address, version="auto", timeout=timeout), address)

    def __enter__(self) -> Engine:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._client.close()

    def find(self, name: str) -> Found | None:
        """Return the container of that name or id, or ``None``."""
        from docker.errors import NotFound

        with _translated(self._address):
            try:
                return _found(self._client.inspect_container(name))
            except NotFound:
                return None

    def of_job(self, job_id: str) -> tuple[Found, ...]:
        """Return the containers that carry the job's label, whatever their names and states."""
        with _translated(self._address):
            listed = self._client.containers(all=True, filters={"label": f"{names.LABEL_JOB}={job_id}"})
        inspected = (self.find(item["Id"]) for item in listed)
        return tuple(found for found in inspected if found is not None)

    def jobs(self) -> set[str]:
        """Return the jobs of which there are containers, in whatever state."""
        with _translated(self._address):
            listed = self._client.containers(all=True, filters={"label": names.LABEL_JOB})
        return {item["Labels"][names.LABEL_JOB] for item in listed}

    def image(self, reference: str) -> Image:
        """Return what the daemon knows of an image.

        Raises:
            HostError: it is not on this host.
        """
        from docker.errors import ImageNotFound

        with _translated(self._address):
            try:
                config = self._client.inspect_image(reference)["Config"] or {}  # type: ignore[no-untyped-call]
            except ImageNotFound as error:
                raise _no_image(reference) from error
        variables = (entry.partition("=") for entry in config.get("Env") or ())
        return Image(
            config.get("Labels") or {},
            {name: value for name, _, value in variables},
            tuple(sorted(config.get("Volumes") or ())),
        )

    def start(self, name: str, body: Payload) -> Found:
        """Create and start a container; one that was created but does not start is left for the caller."""
        from docker.errors import ImageNotFound

        with _translated(self._address):
            try:
                created = self._client.create_container_from_config(body, name)  # type: ignore[no-untyped-call]
            except ImageNotFound as error:
                raise _no_image(body["Image"]) from error
            self._client.start(created["Id"])
            return _found(self._client.inspect_container(created["Id"]))

    def last_output(self, container_id: str) -> tuple[bytes, bytes]:
        """Return the last two entries of the log, apart: standard output and standard error.

        Two, since each stream may end with a line that has no newline.
        """
        with _translated(self._address):
            return (
                self._client.logs(container_id, stdout=True, stderr=False, tail=2),
                self._client.logs(container_id, stdout=False, stderr=True, tail=2),
            )

    def remove(self, container_id: str) -> None:
        """Kill and remove a container and its anonymous volumes; gone already is fine."""
        from docker.errors import APIError, NotFound

        with _translated(self._address):
            try:
                self._client.remove_container(container_id, v=True, force=True)
            except NotFound:
                return
            except APIError as error:
                # Somebody else (the reaper, an earlier try) is at it; who asks next sees it gone.
                if error.status_code != 409 or "already in progress" not in str(error.explanation):
                    raise


def _no_image(reference: str) -> HostError:
    return HostError(
        f"the image {reference} is not on this host; cluster_setup.yml --tags images puts it there"
    )


def _found(inspected: Mapping[str, Any]) -> Found:
    state = inspected["State"]
    finished = state["Status"] in ("exited", "dead")
    return Found(
        id=inspected["Id"],
        name=inspected["Name"].removeprefix("/"),
        labels=inspected["Config"]["Labels"] or {},
        running=bool(state["Running"]),
        pid=int(state["Pid"]),
        exit_code=int(state["ExitCode"]) if finished else None,
        oom_killed=bool(state["OOMKilled"]),
    )


@contextmanager
def _translated(address: str) -> Iterator[None]:
    """Turn the SDK's errors into one line that says what the daemon refused."""
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except APIError as error:
        raise HostError(f"the Docker daemon refused: {error.explanation or error}") from error
    except (DockerException, RequestException) as error:
        raise HostError(f"no answer from the Docker daemon at {address}: {error}") from error
