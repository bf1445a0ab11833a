# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is the cluster well?  Each check is one function that yields what is wrong, where, and what to do."""

from __future__ import annotations

import dataclasses
import datetime
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from dockerjob_core import jobtree, names, node_program
from dockerjob_core.errors import KvsError, RegistryError
from dockerjob_core.kvs import Kvs
from dockerjob_core.schedulers import SYSTEMS

from ..config import Config
from ..registry import Registry
from .connections import PARALLEL, Connections
from .policy import in_registry

SOON = datetime.timedelta(days=14)
SKEW = 5.0
"""Seconds that a host's clock may differ; certificates allow five minutes."""

LEAST_FREE = 0.05
SETUP = "ansible-playbook playbooks/cluster_setup.yml --tags"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``remedy`` is empty where all is well."""

    level: Literal["ok", "note", "wrong"]
    where: str
    what: str
    detail: str
    remedy: str = ""


def examine(config: Config, only: tuple[str, ...] = ()) -> list[Finding]:
    """Look at everything: certificates, batch system, etcd, and all hosts or those of *only*."""
    findings = [*certificates(config), *batch(config), *registry(config)]
    jobs: set[str] | None = None
    try:
        with config.etcd.connect() as kvs:
            jobs = set(jobtree.list_job_trees(kvs))
            findings += etcd(kvs)
    except KvsError as error:
        remedy = f"systemctl status haproxy here, etcd on its members; {SETUP} etcd,etcd_relay"
        findings.append(Finding("wrong", "etcd", "answers", str(error), remedy))
    chosen = [host for host in config.hosts if not only or host in only]
    with ThreadPoolExecutor(PARALLEL) as pool:
        for found in pool.map(lambda host: list(host_findings(config, host, jobs)), chosen):
            findings += found
    return findings


def certificates(config: Config) -> Iterator[Finding]:
    """Check that the certificates of this host can be read and don't end soon."""
    for name, path in (
        ("etcd.ca", config.etcd.ca),
        ("etcd.cert", config.etcd.cert),
        ("etcd.auth_cert", config.etcd.auth_cert),
        ("job_ca.cert", config.job_ca.cert),
    ):
        try:
            end = x509.load_pem_x509_certificate(Path(path).read_bytes()).not_valid_after_utc
        except (OSError, ValueError) as error:
            yield Finding("wrong", "this host", name, f"{path}: {error}", f"{SETUP} submit_host")
            continue
        left = end - datetime.datetime.now(datetime.UTC)
        detail = f"valid until {end:%Y-%m-%d}"
        if left < SOON:
            level: Literal["note", "wrong"] = "note" if left > datetime.timedelta() else "wrong"
            yield Finding(
                level, "this host", name, detail, "ansible-playbook playbooks/cluster_certificates.yml"
            )
        else:
            yield Finding("ok", "this host", name, detail)


def batch(config: Config) -> Iterator[Finding]:
    """Check that the batch systems' programs are there."""
    programs = [
        (f"batch.{system.name}.{program}", section.plain()[program])
        for system in SYSTEMS.values()
        if (section := config.batch.of(system.name))
        for program in (*system.programs, system.messenger)
        if program in section.plain()
    ]
    if not programs:
        yield Finding("wrong", "this host", "batch system", "none is configured", "set submit_host_batch")
    for key, path in programs:
        if Path(path).is_file():
            yield Finding("ok", "this host", "batch system", path)
        else:
            yield Finding("wrong", "this host", "batch system", f"{path} is not there", f"see {key}")


def registry(config: Config) -> Iterator[Finding]:
    """Check that the site's registry, if it has one, answers and has the catalogue's images."""
    if not config.registry:
        return
    where = config.registry.address
    try:
        with Registry(config.registry) as opened:
            missing = [
                name
                for name, application in config.applications.items()
                if in_registry(config, application.image) and not opened.digest(application.image)
            ]
    except RegistryError as error:
        remedy = f"service dockerjob-registry-reader status on its host; {SETUP} registry"
        yield Finding("wrong", where, "registry", str(error), remedy)
        return
    if missing:
        yield Finding("wrong", where, "registry", f"lacks {', '.join(missing)}", f"{SETUP} images")
    else:
        yield Finding("ok", where, "registry", "answers")


def etcd(kvs: Kvs) -> Iterator[Finding]:
    """Check etcd's alarms, the reapers, and what is dead."""
    alarms = kvs.alarms()
    if alarms:
        remedy = "give etcd more space (--quota-backend-bytes), defragment, then etcdctl alarm disarm"
        yield Finding("wrong", "etcd", "alarms", ", ".join(alarms), remedy)
    else:
        yield Finding("ok", "etcd", "answers", "no alarm")
    reapers = [item.key.rpartition("/")[2] for item in kvs.get_prefix(f"{names.REAPERS}/").items]
    if reapers:
        yield Finding("ok", "etcd", "reaper", f"on {', '.join(reapers)}")
    else:
        yield Finding(
            "wrong", "etcd", "reaper", "none runs", "service dockerjob-reaper start on the reaper hosts"
        )
    for job_id, tree in jobtree.list_job_trees(kvs).items():
        if jobtree.is_dead(kvs, tree):
            detail = f"is dead, and not removed from {', '.join(tree.hosts)}"
            yield Finding("note", "etcd", f"job {job_id}", detail, f"dockerjob gc --job {job_id}")


def host_findings(config: Config, host: str, jobs: set[str] | None) -> Iterator[Finding]:
    """Check one host; *jobs* are those that etcd knows, None if it could not be asked."""
    begin = time.time()
    facts = ask_host(config, host)
    if isinstance(facts, Finding):
        yield facts
        return
    wrong = [
        *_parts(host, facts),
        *_infra(config, host, facts),
        *_images(config, host, facts),
        *_state(host, facts, (begin + time.time()) / 2),
        *_strays(host, facts, jobs),
    ]
    yield from wrong or [Finding("ok", host, "host", "Docker, bridge, relay, images, clock, space")]


def ask_host(config: Config, host: str) -> Mapping[str, Any] | Finding:
    """Have *host* look at itself."""
    connections = Connections(config, [host], Path("/nonexistent"))
    program = node_program.directory()
    python = config.ansible.python_interpreter
    argv = connections.argv(host, python, "-I", program, "check", config.network.bridge)
    limit = config.ansible.connect_timeout + 30
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "wrong", host, "ssh", f"no answer in {limit} s", "is the host up, and its Docker daemon?"
        )
    said = " ".join(done.stderr.split()) or f"ended with {done.returncode}"
    if done.returncode == 255:
        return Finding(
            "wrong", host, "ssh", said, f"is the host up? {SETUP} compute,submit_host puts keys back"
        )
    try:
        facts: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return Finding("wrong", host, "program", said[-200:], f"{SETUP} compute")
    return facts


def _parts(host: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    for part, tags in (("docker", "docker"), ("bridge", "ovs"), ("relay", "etcd_relay")):
        if facts[part]:
            yield Finding("wrong", host, part, facts[part], f"{SETUP} {tags} --limit {host}")


def _infra(config: Config, host: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Check for the portable infrastructure where an application needs it, or may."""
    choices = {application.infra for application in config.applications.values()}
    if facts["infra"] and choices - {"image"}:
        level: Literal["note", "wrong"] = "wrong" if "injected" in choices else "note"
        yield Finding(level, host, "infrastructure", facts["infra"], f"{SETUP} infra --limit {host}")


def _images(config: Config, host: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    for name, application in config.applications.items():
        if (
            application.image.startswith("sha256:")
            and application.image not in facts["images"]
            and not facts["docker"]
        ):
            yield Finding(
                "wrong", host, f"image {name}", f"{application.image[:19]}… is not there", f"{SETUP} compute"
            )


def _state(host: str, facts: Mapping[str, Any], now: float) -> Iterator[Finding]:
    skew = facts["time"] - now
    if abs(skew) > SKEW:
        yield Finding(
            "wrong", host, "clock", f"differs by {skew:+.0f} s from this host's", "chronyc sources there"
        )
    for path, free in facts["free"].items():
        if free < LEAST_FREE:
            yield Finding("wrong", host, path, f"only {free:.0%} free", "remove what fills it")


def _strays(host: str, facts: Mapping[str, Any], jobs: set[str] | None) -> Iterator[Finding]:
    for job_id in facts["jobs"]:
        if jobs is not None and job_id not in jobs:
            remedy = f"ansible-playbook playbooks/job_teardown.yml -e dockerjob_job_id={job_id}"
            yield Finding("wrong", host, f"job {job_id}", "is here, and etcd does not know it", remedy)
