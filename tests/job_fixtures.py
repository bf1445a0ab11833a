# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole jobs in a lab that is a set-up cluster; tests/run.sh and ``make e2e`` bring it up."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerjob_core import names
from dockerjob_lab.client import CONFIG, Cluster, LabDownError, Outcome

DOCKERJOB = "/share/dockerjob/bin/dockerjob"

LAB_NAME = os.environ.get("LAB_NAME", "test")
WRAPPER = "/share/bin/hpc_submit_dockerjob"

SOAK = bool(os.environ.get("DOCKERJOB_SOAK"))
"""Whether this is ``make soak``."""

slow = pytest.mark.skipif(not SOAK, reason="waits for a minute or more; `make soak` runs it")
"""For tests whose time is the batch system's own, and that add little to their neighbours."""


def job(
    command: str = "true",
    *,
    application: str = "mpihello:1",
    slots: int = 4,
    ptile: int = 2,
    jobdir: str = "/scratch/$USER",
    extra: str = "",
) -> str:
    """A submit script; *command* stands between single quotes."""
    return f"""#!/bin/bash
#BSUB -J e2e
#BSUB -n {slots}
#BSUB -R "span[ptile={ptile}]"
export APPLICATION={application}
export COMMAND='{command}'
export JOBDIR={jobdir}
{extra}
{WRAPPER}
"""


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    try:
        return Cluster.find(LAB_NAME)
    except LabDownError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="module")
def slurm_is_up(cluster: Cluster) -> None:
    """Slurm runs on the hosts; before :func:`nothing_left` looks at them, since it mounts what it needs."""
    cluster.bring_up_slurm()


@pytest.fixture
def nothing_left(cluster: Cluster) -> Iterator[None]:
    """Hosts and etcd hold after the test what they held before it."""
    before = cluster.state()
    yield
    for _ in range(20):
        after = cluster.state()
        if after == before:
            return
        time.sleep(0.5)
    assert flat(after) ^ flat(before) == set()


def flat(state: dict[str, Any]) -> set[str]:
    """Every fact of a state as one text, so that a comparison shows what differs."""
    return {
        f"{where} {what}: {fact}"
        for where, found in state.items()
        for what, facts in (found if isinstance(found, dict) else {"etcd": found}).items()
        for fact in (facts if isinstance(facts, list | tuple | set | frozenset) else [facts])
    }


@pytest.fixture
def site_config(cluster: Cluster) -> Iterator[Any]:
    """Change keys of a host's config.yml, the first one's if nothing is said, for one test; none: no such section."""
    originals: dict[Path, str] = {}

    def change(section: str, host: str = "node1", **keys: Any) -> None:
        path = cluster.path(host, CONFIG)
        originals.setdefault(path, path.read_text())
        document = yaml.safe_load(path.read_text())
        if keys:
            document.setdefault(section, {}).update(keys)
        else:
            document.pop(section)
        path.write_text(yaml.safe_dump(document))

    yield change
    for path, original in originals.items():
        path.write_text(original)


def listed_images(cluster: Cluster, user: str = "root") -> dict[str, dict[str, Any]]:
    """Return what ``dockerjob images list`` tells *user*, by application."""
    argv = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
    told = cluster.run("node1", *argv, DOCKERJOB, "images", "list", "--json")
    return {image["application"]: image for image in json.loads(told)}


def stored_image(cluster: Cluster, host: str, application: str) -> tuple[str, str]:
    """Return the name with digest of an application's image as it is now, and its id on a host that has it."""
    reference = listed_images(cluster)[application]["image"]
    return reference, cluster.run(host, "docker", "inspect", "--format={{.Id}}", reference).strip()


@contextlib.contextmanager
def service_stopped(cluster: Cluster, host: str, service: str) -> Iterator[None]:
    """Stop a service of a host, and start it again at the end."""
    cluster.run(host, "service", service, "stop", check=False)
    try:
        yield
    finally:
        cluster.run(host, "service", service, "start")


@contextlib.contextmanager
def link_down(cluster: Cluster, host: str, link: str) -> Iterator[None]:
    """Cut a network of a host, and mend it at the end."""
    cluster.run(host, "ip", "link", "set", link, "down")
    try:
        yield
    finally:
        cluster.run(host, "ip", "link", "set", link, "up")


def last_record(cluster: Cluster) -> dict[str, Any]:
    """Return what the last job of node1's broker has left in the log."""
    lines = cluster.path("node1", "/var/log/dockerjob/jobs.jsonl").read_text().splitlines()
    record: dict[str, Any] = json.loads(lines[-1])
    return record


def refused(done: Outcome, status: int, message: str) -> None:
    """Check that a job ended with *status* and one line that matches *message*, and that COMMAND never wrote."""
    lines = [line for line in done.err.splitlines() if line.startswith("hpc_submit_dockerjob:")]
    assert done.status == status, done
    assert any(re.search(message, line) for line in lines), done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def signal_wrapper(cluster: Cluster, name: str, delay: float = 0.0, *, still_there: bool = True) -> None:
    """Send a signal to the one wrapper on node1, *delay* seconds after it has appeared."""
    for _ in range(100):
        if cluster.run("node1", "pgrep", "-f", "bin/hpc_submit_dockerjob", check=False):
            break
        time.sleep(0.1)
    time.sleep(delay)
    cluster.run("node1", "pkill", f"-{name}", "-f", "bin/hpc_submit_dockerjob", check=still_there)


def containers(cluster: Cluster, job_id: int | str, status: str = "") -> dict[str, list[str]]:
    """Names of the job's containers, by host; hosts without one are left out."""
    wanted = ["--filter", f"label={names.LABEL_JOB}={job_id}"] + (
        ["--filter", f"status={status}"] if status else []
    )
    found = {
        host: cluster.run(host, "docker", "ps", "-a", "--format", "{{.Names}}", *wanted).split()
        for host in cluster.compute
    }
    return {host: listed for host, listed in found.items() if listed}


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Fail when *condition* does not hold within *seconds*."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.2)


def forgotten(cluster: Cluster, job_id: int | str) -> bool:
    """Whether etcd holds nothing of the job any more, so that its hosts were all seen clean."""
    with cluster.kvs() as kvs:
        return not any(str(job_id) in item.key for item in kvs.get_prefix("/").items)


def started(cluster: Cluster, script: str, **options: Any) -> subprocess.Popen[str]:
    """Submit a script whose COMMAND writes ``started`` first, and wait until it has."""
    process = cluster.start(script, **options)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "started\n", (
        line + process.stdout.read() + (process.stderr.read() if process.stderr else "")
    )
    return process


def finish(process: subprocess.Popen[str], timeout: float = 60) -> tuple[str, str]:
    """Wait for the end of a started job and return the rest of both streams.

    Not communicate(), which would miss what readline() has read ahead.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    # As bkill: the processes of the job hold the streams open.
    timer = threading.Timer(timeout, process.send_signal, [signal.SIGINT])
    timer.start()
    try:
        with ThreadPoolExecutor(1) as pool:
            err = pool.submit(process.stderr.read)
            out = process.stdout.read()
            process.wait()
            return out, err.result()
    finally:
        timer.cancel()


@contextlib.contextmanager
def running_job(cluster: Cluster, user: str, hosts: str, number: int | None = None) -> Iterator[None]:
    """Have a job of *user* run meanwhile; it ends with 0 when the block does, or the test fails."""
    gate = f"/scratch/{user}/gate"
    cluster.run("node1", "sh", "-c", f"rm -f {gate}; mkfifo -m 666 {gate}")
    process = started(
        cluster,
        job(f"echo started; echo line; read _ <{gate}; echo done"),
        user=user,
        hosts=hosts,
        number=number,
    )
    try:
        yield
    finally:
        cluster.run("node1", "sh", "-c", f"timeout 5 sh -c 'echo go >{gate}'; rm -f {gate}", check=False)
        out, err = finish(process)
    assert (out, process.returncode) == ("line\ndone\n", 0), err
