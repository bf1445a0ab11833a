# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users, roles and their permissions in etcd, which etcd3's client does not reach.

Users have no password: a client is the user that its certificate's common name says.
Every change makes writes that cross it fail once (see ``kvs_channel.AUTH_STORE_OLD``), so
as few as possible are made: :func:`plan` says which, and an identity that is already
right costs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .kvs_channel import Channel, RefusedError, prefix_range

ROOT = "root"
"""The user and the role that etcd wants before it turns authentication on."""

NO_PASSWORD = b"\x1a\x02\x08\x01"
"""``options { no_password: true }``, field 3 of AuthUserAddRequest since etcd 3.4.

etcd3's messages are older.  Without it the user gets an empty password and anyone could log in as it.
"""

AUTH_OFF = "etcdserver: authentication is not enabled"
EXISTS = ("etcdserver: user name already exists", "etcdserver: role name already exists")
NOT_FOUND = ("etcdserver: user name not found", "etcdserver: role name not found")

Access = Literal["read", "write", "readwrite"]


@dataclass(frozen=True, order=True)
class Permission:
    """What a role may do with the keys from *key* up to *range_end* (empty: with the one key)."""

    key: bytes
    range_end: bytes
    access: Access

    @classmethod
    def on_prefix(cls, prefix: str, access: Access) -> Permission:
        """Permission on all keys that begin with *prefix*; the empty prefix is every key."""
        return cls(**prefix_range(prefix), access=access)

    def __str__(self) -> str:
        """Say it for people: ``readwrite /748/*``."""
        text = self.key.decode(errors="backslashreplace")
        if not self.range_end:
            return f"{self.access} {text}"
        if self == Permission.on_prefix(text, self.access):
            return f"{self.access} {text}*"
        return f"{self.access} [{text}, {self.range_end.decode(errors='backslashreplace')})"


@dataclass(frozen=True)
class AuthState:
    """Users with their roles, and roles with their permissions; a missing name does not exist."""

    users: Mapping[str, frozenset[str]] = field(default_factory=dict)
    roles: Mapping[str, frozenset[Permission]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One change: a verb of :class:`Auth`, its user or role, and what it gives or takes."""

    verb: Literal[
        "add_role", "grant", "revoke", "add_user", "grant_role", "revoke_role", "delete_user", "delete_role"
    ]
    name: str
    role: str = ""
    permission: Permission | None = None


def plan(want: AuthState, have: AuthState) -> list[Step]:
    """Return the steps that give the names in *want* exactly what it says; others are left alone.

    Roles come before the users that have them, and what is taken away goes first.
    """
    steps: list[Step] = []
    for name, permissions in sorted(want.roles.items()):
        if name not in have.roles and name != ROOT:
            steps.append(Step("add_role", name))
        held = have.roles.get(name, frozenset())
        granted = {(permission.key, permission.range_end) for permission in permissions}
        steps += [
            Step("revoke", name, permission=p) for p in sorted(held) if (p.key, p.range_end) not in granted
        ]
        steps += [Step("grant", name, permission=p) for p in sorted(permissions - held)]
    for name, roles in sorted(want.users.items()):
        if name not in have.users:
            steps.append(Step("add_user", name))
        held_roles = have.users.get(name, frozenset())
        steps += [Step("revoke_role", name, role) for role in sorted(held_roles - roles)]
        steps += [Step("grant_role", name, role) for role in sorted(roles - held_roles)]
    return steps


def plan_removal(users: Iterable[str], roles: Iterable[str], have: AuthState) -> list[Step]:
    """Return the steps that remove *users* and *roles*."""
    return [Step("delete_user", name) for name in sorted(users) if name in have.users] + [
        Step("delete_role", name) for name in sorted(roles) if name in have.roles
    ]


class Auth:
    """The users and roles of etcd; needs an identity with the role ``root`` once authentication is on."""

    def __init__(self, channel: Channel) -> None:
        """Use *channel*; :class:`~.kvs.Kvs` keeps one of these as ``auth``."""
        self._channel = channel
        self._rpc = channel.rpc
        self._stub = channel.stub("Auth")

    def enabled(self) -> bool:
        """Say whether authentication is on.

        etcd 3.4 has no call for it; it looks at a login only when it is, and refuses this one.
        """
        try:
            self._call("Authenticate", "ask whether authentication is on", name="-")
        except RefusedError as error:
            return error.reason != AUTH_OFF
        return True

    def enable(self) -> None:
        """Turn authentication on; wants the user ``root`` with the role ``root``."""
        self._call("AuthEnable", "turn authentication on")

    def disable(self) -> None:
        """Turn authentication off: every client may then do everything."""
        self._call("AuthDisable", "turn authentication off")

    def users(self) -> list[str]:
        """Names of all users, sorted."""
        return sorted(self._call("UserList", "list the users").users)

    def read(self, users: Iterable[str], roles: Iterable[str]) -> AuthState:
        """Read those of *users* and *roles* that exist."""
        found_users = {name: self._roles_of(name) for name in users}
        found_roles = {name: self._permissions_of(name) for name in roles}
        return AuthState(
            {name: value for name, value in found_users.items() if value is not None},
            {name: value for name, value in found_roles.items() if value is not None},
        )

    def apply(self, steps: Iterable[Step]) -> None:
        """Make the changes that :func:`plan` or :func:`plan_removal` returned."""
        for step in steps:
            getattr(self, "_" + step.verb)(step)

    # -- one method per verb of a step --------------------------------------------------

    def _add_role(self, step: Step) -> None:
        self._call("RoleAdd", f"add role {step.name}", name=step.name)

    def _delete_role(self, step: Step) -> None:
        self._call("RoleDelete", f"delete role {step.name}", role=step.name)

    def _grant(self, step: Step) -> None:
        from etcd3.etcdrpc import auth_pb2  # type: ignore[import-untyped]  # no type information

        given = step.permission
        if given is not None:
            kind = auth_pb2.Permission.Type.Value(given.access.upper())
            perm = auth_pb2.Permission(permType=kind, key=given.key, range_end=given.range_end)
            self._call("RoleGrantPermission", f"grant {given} to role {step.name}", name=step.name, perm=perm)

    def _revoke(self, step: Step) -> None:
        taken = step.permission
        if taken is not None:
            self._call(
                "RoleRevokePermission",
                f"take {taken} from role {step.name}",
                role=step.name,
                # etcd3's message has text here where etcd's own has bytes; the wire is the same.
                key=taken.key.decode(),
                range_end=taken.range_end.decode(),
            )

    def _add_user(self, step: Step) -> None:
        self._call("UserAdd", f"add user {step.name}", extra=NO_PASSWORD, name=step.name)

    def _delete_user(self, step: Step) -> None:
        self._call("UserDelete", f"delete user {step.name}", name=step.name)

    def _grant_role(self, step: Step) -> None:
        self._call("UserGrantRole", f"give user {step.name} role {step.role}", user=step.name, role=step.role)

    def _revoke_role(self, step: Step) -> None:
        self._call(
            "UserRevokeRole", f"take role {step.role} from user {step.name}", name=step.name, role=step.role
        )

    # -- what the above share -----------------------------------------------------------

    def _roles_of(self, user: str) -> frozenset[str] | None:
        answer = self._found("UserGet", f"read user {user}", name=user)
        return None if answer is None else frozenset(answer.roles)

    def _permissions_of(self, role: str) -> frozenset[Permission] | None:
        answer = self._found("RoleGet", f"read role {role}", role=role)
        if answer is None:
            return None
        access: tuple[Access, ...] = ("read", "write", "readwrite")  # in the order of etcd's numbers
        return frozenset(Permission(p.key, p.range_end, access[p.permType]) for p in answer.perm)

    def _found(self, method: str, what: str, **fields: Any) -> Any:
        """Make a call that reads; None if there is no such user or role."""
        try:
            return self._call(method, what, **fields)
        except RefusedError as error:
            if error.reason not in NOT_FOUND:
                raise
            return None

    def _call(self, method: str, what: str, extra: bytes = b"", **fields: Any) -> Any:
        message = method if method.startswith("Auth") else f"Auth{method}"
        request = getattr(self._rpc, f"{message}Request")(**fields)
        request.MergeFromString(extra)
        return self._channel.call(what, getattr(self._stub, method), request)
