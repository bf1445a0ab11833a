# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The broker's answers to questions: users are told of their own jobs, administrators of all."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dockerjob_core import jobtree, names
from dockerjob_core.errors import PolicyError, RequestError
from dockerjob_core.jobtree import JobTree
from dockerjob_core.kvs import Kvs

from ..config import Config, load_config
from ..query import Query
from .account import cache_directory
from .audit import Audit
from .connections import Connections
from .identity import caller
from .shared import shared_answer
from .status import all_jobs, status_of

EVERYBODY = None

CATALOGUE_AGE = 300
"""Seconds for which users are told of images what was found for another one."""


def answer(query: Query, audit: Audit, environment: Mapping[str, str] = os.environ) -> int:
    """Answer on standard output, as JSON, or with the log itself; return the exit status.

    Raises:
        DockerjobError: the question can't be answered, or not to this caller.
    """
    config = load_config()
    audit.directory = Path(config.log_directory)
    user = asker(config, environment)
    audit.know(user=user or "root", application=f"query {query.kind}", job=query.job_id)
    if query.kind == "images":
        audit.accepted()
        # Asking registry and hosts is work that a user can't have done as often as they like.
        age = 0 if user is EVERYBODY else CATALOGUE_AGE
        found = shared_answer(cache_directory() / "images.json", age, lambda: list_images(config))
        print(json.dumps(found), flush=True)
        return 0
    with config.etcd.connect() as kvs:
        if query.kind == "jobs":
            audit.accepted()
            print(json.dumps([status.as_dict() for status in all_jobs(kvs, user)]), flush=True)
            return 0
        tree = find_job(kvs, query.job_id, user)
        audit.accepted()
        if query.kind == "show":
            print(json.dumps(status_of(kvs, tree).as_dict()), flush=True)
            return 0
    return show_log(config, tree, query)


def list_images(config: Config) -> list[dict[str, Any]]:
    """Ask the registry and all hosts which images there are.

    Raises:
        RegistryError: the site's registry does not answer.
    """
    from .catalogue import ask_all, catalogue

    return [image.as_dict() for image in catalogue(config, ask_all)]


def asker(config: Config, environment: Mapping[str, str]) -> str | None:
    """Return the name of the user who asks, or :data:`EVERYBODY` for one who may see all jobs.

    Raises:
        PolicyError: nobody or a system account asks.
    """
    if environment.get("SUDO_UID") == "0":
        return EVERYBODY
    identity = caller(environment, config.minimum_uid)
    return EVERYBODY if identity.name in config.policy.administrators else identity.name


def find_job(kvs: Kvs, job_id: str, user: str | None) -> JobTree:
    """Find a job that *user* may ask about.

    Raises:
        RequestError: there is none; one of somebody else's is said not to be there either.
    """
    tree = jobtree.read_job_tree(kvs, job_id)
    if tree is None or user not in (EVERYBODY, tree.record.get("user")):
        raise RequestError(f"there is no job {job_id} of yours here now; 'dockerjob jobs' lists them")
    return tree


def show_log(config: Config, tree: JobTree, query: Query) -> int:
    """Become the command that prints the log of a node; return only if that can't be.

    Raises:
        RequestError: the job has no such node.
        PolicyError: its host is not in the cluster any more.
    """
    if query.node >= len(tree.hosts):
        raise RequestError(f"job {tree.job_id} has {len(tree.hosts)} nodes; there is no node {query.node}")
    host, node = tree.hosts[query.node], names.node_name(tree.job_id, query.node)
    if host not in config.hosts:
        raise PolicyError(f"host {host} is not in this cluster any more")
    follow = ["--follow"] if query.follow else []
    command = ["docker", "logs", *follow, node]
    if query.agent:
        # In the container, so as the user: nothing of ours opens the user's files.
        command = [
            "docker",
            "exec",
            node,
            "tail",
            "-n",
            "+1",
            *follow,
            f"{names.CONTAINER_WRITABLE}/agent.log",
        ]
    argv = Connections(config, [host], Path(tempfile.gettempdir()) / "none").argv(host, *command)
    argv.insert(1, "-n")
    # The broker ignores what the terminal sends; a log that is followed must not.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_DFL)
    os.execv(argv[0], argv)  # noqa: S606 - no shell, and no word of a user's
