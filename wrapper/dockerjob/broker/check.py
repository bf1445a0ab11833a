# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a request would be taken: asked before the inputs of a job are copied, which may take hours."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from ..config import load_config
from ..request import JobRequest
from ..schedulers import on_compute_hosts, prove
from .audit import Audit
from .identity import caller
from .policy import check_request


def check(request: JobRequest, audit: Audit) -> int:
    """Hold *request* against the site's policy and the batch system, create nothing, and return 0.

    Raises:
        DockerjobError: as the job itself would be refused.
    """
    config = load_config()
    audit.directory = Path(config.log_directory)
    identity = caller(os.environ, config.minimum_uid, config.minimum_gid)
    audit.know(user=identity.name, job=request.job_id, application=f"query check {request.application}")
    allocation = on_compute_hosts(config.batch, request.allocation)
    check_request(config, dataclasses.replace(request, allocation=allocation))
    prove(config.batch, allocation, identity.name, identity.uid)
    audit.accepted()
    return 0
