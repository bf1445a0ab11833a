# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The site's configuration, ``/etc/dockerjob/config.yml``, validated when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from dockerjob_core import names
from dockerjob_core.allocation import HOST_NAME
from dockerjob_core.errors import ConfigError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

CONFIG_FILE = Path("/etc/dockerjob/config.yml")

HostName = Annotated[str, StringConstraints(pattern=f"^{HOST_NAME.pattern}$")]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Host(_Model):
    """How the broker reaches a host of the cluster."""

    address: str


class AnsibleSettings(_Model):
    """The account on the hosts that the playbooks log in to, and its key."""

    user: str = "root"
    private_key: AbsolutePath
    known_hosts: AbsolutePath
    connect_timeout: Annotated[int, Field(ge=1, le=300)] = 10
    python_interpreter: AbsolutePath = "/usr/bin/python3"


class EtcdSettings(_Model):
    """The relay's socket on this host, and the broker's client certificate."""

    socket: AbsolutePath = names.RELAY_SOCKET
    server_name: str = "etcd"
    ca: AbsolutePath
    cert: AbsolutePath
    key: AbsolutePath


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


class Application(_Model):
    """One application that jobs may ask for.

    ``hostfile`` is where command lines of this application expect a hostfile, relative
    to JOBDIR, so that a submit script works as it stands.
    """

    image: str
    hostfile: str | None = None
    description: str = ""


class Mount(_Model):
    """A path of the host that every job's containers see, with the user's own rights.

    ``rslave`` also shows file systems that are mounted below it later, such as automounts; it
    needs a shared mount on the host (mount_namespaces(7)).
    """

    path: AbsolutePath
    read_only: bool = False
    propagation: Literal["rprivate", "rslave"] = "rprivate"


class Ulimit(_Model):
    """One resource limit of the containers; see setrlimit(2)."""

    name: str
    soft: int
    hard: int


class Limits(_Model):
    """Times, in seconds.  A broker that dies is noticed after ``lease_ttl``."""

    wall_clock: Annotated[int, Field(ge=1)] = 86400
    grace: Annotated[int, Field(ge=0)] = 60
    discovery_timeout: Annotated[int, Field(ge=1)] = 60
    setup_timeout: Annotated[int, Field(ge=10)] = 300
    lease_ttl: Annotated[int, Field(ge=10)] = 60


class ContainerSettings(_Model):
    """What every container gets, whoever asks.

    ``environment`` is for COMMAND, such as a site's settings of MPI; a user's own variable wins.
    """

    seccomp_profile: AbsolutePath | None = None
    shm_size: int | None = None
    pids: int | None = None
    ulimits: tuple[Ulimit, ...] = ()
    devices: tuple[str, ...] = ()
    environment: dict[str, str] = {}


class Config(_Model):
    """The whole of ``config.yml``."""

    hosts: dict[HostName, Host]
    ansible: AnsibleSettings
    etcd: EtcdSettings
    job_ca: CertificateAuthority
    network: NetworkSettings = NetworkSettings()
    applications: dict[str, Application]
    mounts: tuple[Mount, ...]
    limits: Limits = Limits()
    container: ContainerSettings = ContainerSettings()
    minimum_uid: Annotated[int, Field(ge=1)] = 1000
    log_directory: AbsolutePath = "/var/log/dockerjob"


def load_config(path: Path = CONFIG_FILE) -> Config:
    """Read and validate the configuration.

    Raises:
        ConfigError: the file can't be read, is no YAML, or a key is wrong; the message names it.
    """
    try:
        document = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; apply playbooks/cluster_setup.yml to this host"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ConfigError(f"{path}: {key}: {first['msg']}") from error
