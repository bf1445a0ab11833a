# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The etcd users of jobs: all that a broker needs the role ``root`` for.

etcd lets only that role make users.  So this is the one place that uses such a certificate,
and it can make nothing but a job's own identity: whoever calls it names a job, neither user
nor keys.  See ``docs/decisions/0007-etcd-identities-of-the-broker.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import names
from .kvs_auth import EXISTS, NOT_FOUND, Auth, AuthState, Permission, Step, plan
from .kvs_channel import Channel, Endpoint, RefusedError


class JobIdentities:
    """Adds and removes the etcd user and role ``job-<job>``, readwrite on ``/<job>/`` and nothing else.

    Each call has a connection of its own, about 7 ms, so that none with the role ``root`` is
    open while a job computes.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        """Use *endpoint*, whose certificate names a user with the role ``root``."""
        self._endpoint = endpoint

    def add(self, job_id: str) -> None:
        """Make the job's identity; repair what is there."""
        name = names.etcd_user(job_id)
        own = Permission.on_prefix(names.job_prefix(job_id), "readwrite")
        want = AuthState({name: frozenset([name])}, {name: frozenset([own])})
        with self._auth() as auth:
            try:
                auth.apply(plan(want, AuthState()))
            except RefusedError as error:
                if error.reason not in EXISTS:
                    raise
                auth.apply(plan(want, auth.read([name], [name])))

    def remove(self, job_id: str) -> bool:
        """Remove the job's identity; say whether there was anything to remove."""
        name = names.etcd_user(job_id)
        removed = False
        with self._auth() as auth:
            for step in (Step("delete_user", name), Step("delete_role", name)):
                try:
                    auth.apply([step])
                    removed = True
                except RefusedError as error:
                    if error.reason not in NOT_FOUND:
                        raise
        return removed

    def exists(self, job_id: str) -> bool:
        """Say whether the job's user or its role is there."""
        name = names.etcd_user(job_id)
        with self._auth() as auth:
            return auth.read([name], [name]) != AuthState()

    @contextmanager
    def _auth(self) -> Iterator[Auth]:
        channel = Channel(self._endpoint)
        try:
            yield Auth(channel)
        finally:
            channel.close()
