# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The service account: brokers and reapers run as it, and as nobody else."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from dockerjob_core.errors import ConfigError, PolicyError

from ..request import SERVICE_ACCOUNT


def become_service_account() -> None:
    """Change from root to the service account, for good; fine if this process is its already.

    Raises:
        PolicyError: somebody else calls.
        ConfigError: this host has no such account.
    """
    try:
        account = pwd.getpwnam(SERVICE_ACCOUNT)
    except KeyError as error:
        raise ConfigError(
            f"this host has no account {SERVICE_ACCOUNT!r}; is it a submit host? cluster_setup.yml makes it"
        ) from error
    if os.geteuid() == account.pw_uid:
        return
    if os.geteuid() != 0:
        raise PolicyError(f"only root and {SERVICE_ACCOUNT} may do this")
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)
    os.chdir("/")
    os.umask(0o077)


def service_directory() -> Path:
    """Directory of the service account where each run of a broker or a reaper has one of its own."""
    return _home() / "run"


def cache_directory() -> Path:
    """Directory of the service account for what can be found again, and may be removed at any time."""
    return _home() / "cache"


def _home() -> Path:
    return Path(pwd.getpwuid(os.geteuid()).pw_dir)
