# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible action: runs the module ``job_node`` from where it is installed on the host.

See :mod:`..module_utils.node_program` for why.  A host that has no such program, or that
of another version, gets the module in Ansible's usual way.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from ansible.plugins.action import ActionBase

from ..module_utils.node_options import ARGUMENTS, REQUIRED_IF
from ..module_utils.node_program import directory

NOT_INSTALLED = 127
PYTHON = "/usr/bin/python3"


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible ships no type information
    """The action behind ``hpc.dockerjob.job_node``."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check the options here, and have the host's program do the work.

        Raises:
            AnsibleActionFail: the options are wrong.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        _, options = self.validate_argument_spec(ARGUMENTS, required_if=REQUIRED_IF)
        answer = self._low_level_execute_command(
            command(variables.get("ansible_python_interpreter", PYTHON)),
            in_data=json.dumps({"options": options, "check_mode": self._task.check_mode}).encode(),
        )
        if answer["rc"] == NOT_INSTALLED:
            result.update(self._execute_module(task_vars=variables))
        else:
            result.update(parse(answer))
        return result


def command(python: str) -> str:
    """Return the shell command that runs the host's program; nothing in it comes from a user."""
    # With it, the Docker SDK doesn't import setuptools in place of distutils: 0.3 s.
    environment = "SETUPTOOLS_USE_DISTUTILS=stdlib"
    program = directory()
    return f"test -f {program}/__main__.py || exit {NOT_INSTALLED}; {environment} {shlex.quote(python)} -I {program}"


def parse(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the program's result, or a failure with what it wrote instead."""
    try:
        result = json.loads(answer["stdout"])
    except ValueError:
        words = (answer["stderr"].strip() or answer["stdout"].strip()).splitlines()
        said = words[-1] if words else "nothing"
        return {"failed": True, "msg": f"job_node ended with {answer['rc']} and said: {said}"}
    return dict(result)
