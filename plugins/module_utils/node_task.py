# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``hpc.dockerjob.job_node`` does on a host, from its checked options to its result."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from . import node
from .container import Engine
from .errors import DockerjobError
from .jobdir import JobDirectory
from .names import check_job_id

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_SDK = "there is no Docker SDK for Python on this host: install python3-docker"


def perform(options: Mapping[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Bring the node into the wanted state.

    Args:
        options: checked and typed as :data:`.node_options.ARGUMENTS` says.
        check_mode: say what would change, and change nothing.

    Returns:
        the module's result; with ``failed`` and ``msg`` if it failed.
    """
    clock = node.Clock()
    try:
        return _ensure(options, clock, check_mode=check_mode)
    except ImportError:
        return {"failed": True, "msg": NO_SDK, "exception": traceback.format_exc()}
    except (DockerjobError, ValueError) as error:
        return {"failed": True, "msg": str(error), "steps": clock.steps}


def _ensure(options: Mapping[str, Any], clock: node.Clock, *, check_mode: bool) -> dict[str, Any]:
    job_id = check_job_id(options["job_id"])
    with clock.step("connect"):
        engine = Engine.connect(options["docker_host"])
    with engine:
        if options["state"] == "present":
            spec = node.parse(
                job_id, options["runtime_root"], options["bridge"], options["spec"], options.get("run") or ""
            )
            outcome = node.present(spec, engine, clock, check_mode=check_mode)
        else:
            directory = JobDirectory(job_id, options["runtime_root"])
            outcome = node.absent(
                directory, options["bridge"], engine, clock, check_mode=check_mode, run=options.get("run")
            )
    result: dict[str, Any] = {"changed": outcome.changed, "job_id": job_id, "steps": clock.steps}
    result["diff"] = {"before": outcome.before, "after": outcome.after}
    if outcome.found:
        found = outcome.found
        result["container"] = {"name": found.name, "id": found.id, "pid": found.pid}
    if options["state"] == "absent":
        result["nodes"] = list(outcome.nodes)
        result["usage"] = outcome.usage.as_dict()
    return result
