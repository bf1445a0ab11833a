# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The edge that the etcd modules share: options of the connection, errors, and the result's form."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ansible.module_utils.basic import (  # type: ignore[import-untyped]  # ansible-core has no types
    AnsibleModule,
    missing_required_lib,
)

from .errors import DockerjobError
from .kvs import Endpoint, Kvs
from .names import RELAY_SOCKET

CONNECTION: dict[str, dict[str, Any]] = {
    "target": {"type": "str", "default": f"unix:{RELAY_SOCKET}"},
    "ca_cert": {"type": "path", "required": True},
    "client_cert": {"type": "path", "required": True},
    "client_key": {"type": "path", "required": True},
    "server_name": {"type": "str", "default": "etcd"},
    "timeout": {"type": "float", "default": 5.0},
}
"""Documented in the fragment ``hpc.dockerjob.etcd``."""


@dataclass(frozen=True)
class Result:
    """What a module found or did; *before* and *after* are its diff, and differ if it changed."""

    before: Any = None
    after: Any = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether etcd was changed, or would be in check mode."""
        return bool(self.before != self.after)


Ensure = Callable[[Mapping[str, Any], Kvs, bool], Result]
"""Work of a module: its options, the connection, and whether it is check mode."""


IDENTITY = {
    "auth_cert": {"type": "path"},
    "auth_key": {"type": "path"},
}
"""Options of a module that makes jobs' identities: who it is for that."""


def endpoint(options: Mapping[str, Any]) -> Endpoint:
    """Return the endpoint that the options of :data:`CONNECTION` mean."""
    return Endpoint(
        target=options["target"],
        ca=options["ca_cert"],
        cert=options["client_cert"],
        key=options["client_key"],
        server_name=options["server_name"],
        timeout=options["timeout"],
    )


def administrator(options: Mapping[str, Any]) -> Endpoint | None:
    """Return the endpoint that the options of :data:`IDENTITY` mean, if they are set."""
    if not options.get("auth_cert"):
        return None
    return replace(endpoint(options), cert=options["auth_cert"], key=options["auth_key"])


def run(ensure: Ensure, arguments: Mapping[str, Any], **rules: Any) -> None:
    """Run a module: parse the options, connect, call *ensure*, and report.

    Args:
        ensure: The module's work.
        arguments: Its options besides :data:`CONNECTION`.
        rules: Further arguments of ``AnsibleModule``, such as ``required_if``.
    """
    module = AnsibleModule(argument_spec={**CONNECTION, **arguments}, supports_check_mode=True, **rules)
    try:
        with Kvs.connect(endpoint(module.params), administrator(module.params)) as kvs:
            result = ensure(module.params, kvs, module.check_mode)
    except ImportError as error:
        library = (error.name or "etcd3").partition(".")[0]
        module.fail_json(msg=missing_required_lib(library), exception=traceback.format_exc())
    except (DockerjobError, ValueError) as error:
        module.fail_json(msg=str(error))
    diff = (
        {}
        if result.before is None and result.after is None
        else {"diff": {"before": result.before or {}, "after": result.after or {}}}
    )
    module.exit_json(changed=result.changed, **result.values, **diff)
