# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One record per request, accepted or refused, for the site's system log.

It goes to syslog(3) with the facility ``authpriv``, and to ``audit.jsonl`` in the broker's
log directory, as one line of JSON in ASCII: whatever a user wrote can neither break the
line nor imitate another record.
"""

from __future__ import annotations

import contextlib
import json
import os
import syslog
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

LONGEST = 300
"""Characters of a user's text that are kept."""


class Audit:
    """What is known of a request, until it is decided."""

    def __init__(self, directory: Path = Path("/var/log/dockerjob")) -> None:
        """Begin with who called sudo, which is all that is certain.

        *directory* is where ``audit.jsonl`` is, until the configuration names another.
        """
        self.directory = directory
        self._facts: dict[str, Any] = {"uid": os.environ.get("SUDO_UID", "")[:20], "user": "", "job": ""}
        self._decided = False

    def know(self, **facts: Any) -> None:
        """Add facts: ``user``, ``job``, ``application``, ``image``, ``hosts``, ``scheduler``."""
        self._facts.update(facts)

    def accepted(self) -> None:
        """Record that the job was let in."""
        self._decide("accepted", "")

    def refused(self, reason: str) -> None:
        """Record that it was not; without effect once it is let in."""
        self._decide("refused", reason)

    def _decide(self, decision: Literal["accepted", "refused"], reason: str) -> None:
        if self._decided:
            return
        self._decided = True
        record = {"decision": decision, "reason": reason, **self._facts}
        short = {key: value[:LONGEST] if isinstance(value, str) else value for key, value in record.items()}
        syslog.openlog("dockerjob-broker", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
        line = json.dumps(short)
        priority = syslog.LOG_INFO if decision == "accepted" else syslog.LOG_WARNING
        syslog.syslog(priority, line)
        syslog.closelog()
        stamped = json.dumps({"time": datetime.now(UTC).isoformat(), **short})
        # Unbuffered, so that the line is one write, which other brokers' lines don't come into.
        with contextlib.suppress(OSError), (self.directory / "audit.jsonl").open("ab", buffering=0) as stream:
            stream.write(stamped.encode() + b"\n")
