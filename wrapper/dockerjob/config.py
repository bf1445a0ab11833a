# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The site's configuration, ``/etc/dockerjob/config.yml``, validated when it is read."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from dockerjob_core import names
from dockerjob_core.allocation import HOST_NAME
from dockerjob_core.container import LOG_BYTES
from dockerjob_core.devices import Permit, check_path
from dockerjob_core.errors import ConfigError
from dockerjob_core.infra import Infra
from dockerjob_core.ipam import NetworkPool
from dockerjob_core.kvs import Endpoint, Kvs
from dockerjob_core.schedulers import SYSTEMS
from dockerjob_core.schedulers.base import BatchSystem, MemoryPer
from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    create_model,
    model_validator,
)

CONFIG_FILE = Path("/etc/dockerjob/config.yml")

HostName = Annotated[str, StringConstraints(pattern=f"^{HOST_NAME.pattern}$")]
DIGEST = re.compile(r"(^|@)sha256:[0-9a-f]{64}$")
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$")]


CLOSED = (
    "/boot",
    "/dev",
    "/etc/dockerjob",
    "/etc/shadow",
    "/etc/ssh",
    "/opt/dockerjob",
    "/proc",
    "/root",
    "/run",
    "/sys",
    "/var/lib/docker",
    "/var/lib/dockerjob",
    "/var/log/dockerjob",
    "/var/run",
)
"""Paths that no container sees of its host; the agent in the container is at /opt/dockerjob."""


class _Model(BaseModel):
    # Deferred: the whole is built in one go, and a broker needs no part of it alone.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Host(_Model):
    """How the broker reaches a host of the cluster."""

    address: str


class AnsibleSettings(_Model):
    """The account on the hosts that the playbooks log in to, and its key.

    ``kex_algorithms`` is KexAlgorithms of ssh_config(5).
    """

    user: str = "root"
    private_key: AbsolutePath
    known_hosts: AbsolutePath
    connect_timeout: Annotated[int, Field(ge=1, le=300)] = 10
    kex_algorithms: Annotated[str, Field(pattern=r"^[-+^]?[A-Za-z0-9@.,*?-]+$")] = "^curve25519-sha256"
    python_interpreter: AbsolutePath = "/usr/bin/python3"


class EtcdSettings(_Model):
    """The relay's socket on this host, and the broker's two client certificates.

    With ``auth_cert`` jobs' identities are made and removed, with ``cert`` everything else is done.
    ``timeout`` is how many seconds one request may take.
    """

    socket: AbsolutePath = names.RELAY_SOCKET
    server_name: str = "etcd"
    ca: AbsolutePath
    cert: AbsolutePath
    key: AbsolutePath
    auth_cert: AbsolutePath
    auth_key: AbsolutePath
    timeout: Annotated[int, Field(ge=1, le=600)] = 10

    def connect(self) -> Kvs:
        """Prepare the broker's connection to etcd; the first call opens it."""
        everyday = Endpoint(
            f"unix:{self.socket}", self.ca, self.cert, self.key, self.server_name, self.timeout
        )
        return Kvs.connect(everyday, replace(everyday, cert=self.auth_cert, key=self.auth_key))


class CertificateAuthority(_Model):
    """The authority that signs the short-lived client certificate of each job."""

    cert: AbsolutePath
    key: AbsolutePath


class NetworkSettings(_Model):
    """The pool that job networks are taken from, and what they are put on."""

    bridge: str = "br-job"
    pool: str = "10.128.0.0/9"
    prefix_length: Annotated[int, Field(ge=8, le=30)] = 24
    vlans: str = "100-3999"
    mtu: Annotated[int, Field(ge=576, le=65535)] = 1500
    interface: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]{0,14}$")] = "eth1"


class RegistrySettings(_Model):
    """The site's image registry, which ``applications`` name their images in, and the account that reads there.

    ``offer`` are patterns of ``NAME:TAG``: what matches may be asked for without being listed.
    ``pulls`` hosts of a job pull at a time.  One pull may take ``pull_timeout`` seconds, and that again for
    each doubling of the job's hosts; ``timeout`` is for one request to the registry's API.
    """

    address: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?$")]
    ca: AbsolutePath
    username: str = "reader"
    password_file: AbsolutePath
    timeout: Annotated[int, Field(ge=1, le=600)] = 10
    pull_timeout: Annotated[int, Field(ge=1)] = 600
    pulls: Annotated[int, Field(ge=1, le=1024)] = 8
    offer: tuple[str, ...] = ()


class Application(_Model):
    """One application that jobs may ask for.

    ``image`` is the id of an image that the hosts have, or what it is called in the site's registry.
    ``hostfile`` is where command lines of this application expect a hostfile, relative
    to JOBDIR, so that a submit script works as it stands.  ``infra`` says where agent, ssh and Python are
    from: a layer of the image, the host (``injected``), or by ``auto`` the host if it has them, else the layer.
    """

    image: str
    infra: Infra = "auto"
    hostfile: str | None = None
    description: str = ""


def _check_mount(path: str) -> str:
    """Refuse a path that would show containers what is the hosts'."""
    if os.path.normpath(path) != path:
        raise ValueError(f"{path} is not in its shortest form, {os.path.normpath(path)}")
    for closed in CLOSED:
        if (
            path == "/"
            or PurePosixPath(path).is_relative_to(closed)
            or PurePosixPath(closed).is_relative_to(path)
        ):
            raise ValueError(f"{path} would show containers the hosts' {closed}")
    return path


def _check_profile(name: str) -> str:
    """Refuse the name that switches AppArmor off."""
    if name == "unconfined":
        raise ValueError("unconfined is no profile; leave the key out for docker-default")
    return name


AppArmorProfile = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9/][A-Za-z0-9._/-]*$"), AfterValidator(_check_profile)
]


class Mount(_Model):
    """A path of the host that every job's containers see, with the user's own rights.

    ``rslave`` also shows file systems that are mounted below it later, such as automounts; it
    needs a shared mount on the host (mount_namespaces(7)).
    """

    path: Annotated[AbsolutePath, AfterValidator(_check_mount)]
    read_only: bool = False
    propagation: Literal["rprivate", "rslave"] = "rprivate"


class _Applied(_Model):
    """What the containers of some applications get: those that one of the patterns (fnmatch(3)) matches."""

    applications: tuple[str, ...] = ("*",)

    def has(self, application: str) -> bool:
        """Tell whether *application* (``NAME:TAG``) gets it."""
        return any(fnmatchcase(application, pattern) for pattern in self.applications)


class Device(_Applied):
    """Devices of the hosts: one, a directory of them, or a pattern; ``/dev/x`` alone means ``{path: /dev/x}``.

    ``required`` makes a host without any an error of the job's, and ``permit: batch`` leaves out what the
    batch system's devices cgroup (v1) of the job on that host doesn't permit.
    """

    path: Annotated[str, AfterValidator(check_path)]
    required: bool = True
    permit: Permit = "always"

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value

    def rule(self) -> dict[str, Any]:
        """Return what a host is told of it."""
        return self.model_dump(include={"path", "required", "permit"})


GpuName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9.-]*/[A-Za-z][\w.-]*=[A-Za-z0-9][\w.:-]*$")
]
"""A CDI device: vendor, class and name."""


class Gpus(_Applied):
    """GPUs by CDI name, from the Docker daemon's CDI or by NVIDIA's runtime."""

    names: Annotated[tuple[GpuName, ...], Field(min_length=1)]
    driver: Literal["cdi", "nvidia"] = "cdi"

    @model_validator(mode="after")
    def _of_nvidia(self) -> Gpus:
        if self.driver == "nvidia" and not all(name.startswith("nvidia.com/gpu=") for name in self.names):
            raise ValueError("NVIDIA's runtime has nvidia.com/gpu=... only")
        return self

    def request(self) -> dict[str, Any]:
        """Return what a host is told of them."""
        return {"driver": self.driver, "names": list(self.names)}


UlimitName = Literal[
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
]
"""What setrlimit(2) knows, in the Docker daemon's words."""

UNLIMITED = -1


class Ulimit(_Model):
    """One resource limit of the containers; see setrlimit(2). -1 is no limit."""

    name: UlimitName
    soft: Annotated[int, Field(ge=UNLIMITED)]
    hard: Annotated[int, Field(ge=UNLIMITED)]

    @model_validator(mode="after")
    def _in_order(self) -> Ulimit:
        if self.hard != UNLIMITED and not 0 <= self.soft <= self.hard:
            raise ValueError(
                f"the soft limit of {self.name}, {self.soft}, is above the hard one, {self.hard}"
            )
        return self


MPI_ULIMITS = (
    Ulimit.model_construct(name="memlock", soft=UNLIMITED, hard=UNLIMITED),
    Ulimit.model_construct(name="stack", soft=UNLIMITED, hard=UNLIMITED),
    Ulimit.model_construct(name="nofile", soft=65536, hard=65536),
)
"""RDMA locks its buffers in memory, Fortran has large arrays on the stack, and each rank has sockets to many."""


class Limits(_Model):
    """Times, in seconds; and ``output``, which is how much COMMAND may write to its standard output and error.

    ``kill_grace`` is what COMMAND gets to end by itself after a signal that ends the job, and
    ``suspension`` how long a job may be suspended in all.  A broker whose host dies is noticed
    after ``lease_ttl``.
    """

    wall_clock: Annotated[int, Field(ge=1)] = 86400
    grace: Annotated[int, Field(ge=0)] = 60
    discovery_timeout: Annotated[int, Field(ge=1)] = 60
    setup_timeout: Annotated[int, Field(ge=10)] = 300
    lease_ttl: Annotated[int, Field(ge=10)] = 30
    kill_grace: Annotated[int, Field(ge=0, le=600)] = 5
    suspension: Annotated[int, Field(ge=0)] = 86400
    output: Annotated[ByteSize, Field(ge=1 << 16, le=LOG_BYTES // 2)] = ByteSize(LOG_BYTES // 2)


class ContainerSettings(_Model):
    """What every container gets, whoever asks.  Sizes are bytes, or have a unit, such as ``4GiB``.

    ``memory_per_slot`` and ``swap_per_slot`` are multiplied by the slots on the container's host, and
    ``cpus_per_slot`` by the CPUs, where the batch system counts these.  What the batch system limits
    further is limited further; nothing goes beyond these.
    ``devices`` and ``gpus`` are for the applications that they name.
    ``environment`` is for COMMAND, such as a site's settings of MPI; a user's own variable wins.
    """

    seccomp_profile: AbsolutePath | None = None
    apparmor_profile: AppArmorProfile | None = None
    memory_per_slot: Annotated[ByteSize, Field(ge=16 << 20)] | None = None
    swap_per_slot: Annotated[ByteSize, Field(ge=0)] = ByteSize(0)
    cpus_per_slot: Annotated[float, Field(gt=0, le=1024)] | None = 1.0
    shm_size: Annotated[ByteSize, Field(ge=1 << 20)] | None = None
    tmp_size: Annotated[ByteSize, Field(ge=1 << 20)] = ByteSize(1 << 30)
    pids: Annotated[int, Field(ge=64)] = 4096
    ulimits: tuple[Ulimit, ...] = MPI_ULIMITS
    devices: tuple[Device, ...] = ()
    gpus: Gpus | None = None
    environment: dict[str, str] = {}


class SystemSettings(_Model):
    """How the broker asks one batch system about a job; each one has its own programs' paths besides.

    ``environment`` is all that these programs get but PATH, for LSF usually LSF_ENVDIR and
    LSF_SERVERDIR.  ``launch_nodes`` are patterns of hosts that the batch system lists, and that don't
    compute.

    ``memory_per`` says what a memory limit is for, where the site has it otherwise than the batch
    system by itself.  ``overtime`` is how many seconds after the run limit a job is ended that the batch
    system has not ended.
    """

    environment: dict[str, str] = {}
    timeout: Annotated[int, Field(ge=1, le=600)] = 30
    launch_nodes: tuple[str, ...] = ()
    memory_per: MemoryPer | None = None
    overtime: Annotated[int, Field(ge=0)] | None = None

    def plain(self) -> dict[str, str]:
        """Return what the adapter itself declares and the site has: the paths of its programs, and its options."""
        own = ((name, getattr(self, name)) for name in type(self).model_fields.keys() - _COMMON)
        return {name: value for name, value in own if value is not None}


_COMMON = SystemSettings.model_fields.keys()


def _section(system: BatchSystem) -> Any:
    """Make the field of one batch system, from what its adapter declares."""
    programs = dict.fromkeys(system.programs, (AbsolutePath, ...))
    options = {name: (Literal[values], values[0]) for name, values in system.options.items()}
    messenger = {system.messenger: (AbsolutePath | None, None)} if system.messenger else {}
    fields: dict[str, Any] = {**programs, **options, **messenger}
    return (create_model(f"{system.name}_settings", __base__=SystemSettings, **fields) | None, None)


class _BatchSettings(_Model):
    """The site's batch systems; a job of one that isn't here is refused.

    Every ``recheck`` seconds a running job is asked for again: has it still its hosts?  ``system``
    is what DOCKERJOB_BATCH is for all users; the role submit_host tells the wrapper.
    """

    recheck: Annotated[int, Field(ge=1)] = 120
    system: Annotated[str, StringConstraints(pattern=f"^({'|'.join(SYSTEMS)})$")] | None = None

    def of(self, name: str) -> SystemSettings | None:
        """Return the section of the batch system *name*, None if the site has no such."""
        return getattr(self, name) if name in SYSTEMS else None


if TYPE_CHECKING:
    BatchSettings = _BatchSettings
else:
    BatchSettings = create_model(
        "BatchSettings",
        __base__=_BatchSettings,
        **{system.name: _section(system) for system in SYSTEMS.values()},
    )


class Policy(_Model):
    """What users may ask for; ``administrators`` are accounts that see everybody's jobs.

    Patterns are those of fnmatch(3) and match the whole text.

    ``commands`` are patterns of COMMAND; with any, COMMAND must also be free of what a
    shell treats specially, so that it can't be more than it seems.

    ``interactive`` jobs are those whose COMMAND has the user's terminal.
    """

    images: tuple[str, ...] = ("*",)
    pinned: bool = True
    hosts: Annotated[int, Field(ge=1)] | None = None
    slots: Annotated[int, Field(ge=1)] | None = None
    environment: tuple[str, ...] = ("*",)
    administrators: tuple[str, ...] = ()
    command_length: Annotated[int, Field(ge=1)] = 131072
    command_characters: Literal["any", "printable"] = "any"
    commands: tuple[str, ...] = ()
    interactive: bool = True


class Config(_Model):
    """The whole of ``config.yml``."""

    hosts: dict[HostName, Host]
    ansible: AnsibleSettings
    etcd: EtcdSettings
    job_ca: CertificateAuthority
    network: NetworkSettings = Field(default_factory=NetworkSettings)
    registry: RegistrySettings | None = None
    applications: dict[str, Application]
    mounts: tuple[Mount, ...]
    limits: Limits = Field(default_factory=Limits)
    container: ContainerSettings = Field(default_factory=ContainerSettings)
    batch: BatchSettings
    policy: Policy = Field(default_factory=Policy)
    minimum_uid: Annotated[int, Field(ge=1)] = 1000
    minimum_gid: Annotated[int, Field(ge=1)] = 1000
    log_directory: AbsolutePath = "/var/log/dockerjob"


def load_config(path: Path = CONFIG_FILE) -> Config:
    """Read and validate the configuration.

    Raises:
        ConfigError: the file can't be read, is no YAML, or a key is wrong; the message names it.
    """
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        document = yaml.load(path.read_bytes(), Loader=loader)  # noqa: S506  # both loaders are the safe ones
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; apply playbooks/cluster_setup.yml to this host"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: it looks like a date or a number, and is none.
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ConfigError(f"{path}: {key}: {first['msg']}") from error
    _check_network(config, path)
    _check_images(config, path)
    return config


def _check_network(config: Config, path: Path) -> None:
    """See that jobs can be given networks."""
    network = config.network
    try:
        NetworkPool(network.pool, network.prefix_length, network.vlans)
    except ConfigError as error:
        raise ConfigError(f"{path}: network: {error}") from error


def _check_images(config: Config, path: Path) -> None:
    """Hold the catalogue against the policy: what is offered must be allowed."""
    for name, application in config.applications.items():
        key = f"{path}: applications.{name}.image"
        # What is in the registry is pinned when a job asks for it.
        pinned = config.registry or DIGEST.search(application.image)
        if config.policy.pinned and not pinned:
            raise ConfigError(
                f"{key}: {application.image} is no image id and has no digest (NAME@sha256:...); "
                "a tag can come to mean another image. policy.pinned: false allows it"
            )
        if not any(fnmatchcase(application.image, pattern) for pattern in config.policy.images):
            raise ConfigError(f"{key}: {application.image} matches none of policy.images")
