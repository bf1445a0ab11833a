# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A question to the broker: which jobs there are, how one is, what it has written, which images there are.

It goes through the same door as a request (:mod:`.request`), as one JSON line with the key ``query``.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal, get_args

from dockerjob_core.errors import RequestError
from dockerjob_core.names import JOB_ID

Kind = Literal["jobs", "show", "logs", "images"]
MAX_NODE = 99_999


@dataclasses.dataclass(frozen=True)
class Query:
    """One question.

    Attributes:
        kind: ``jobs``: all that the caller may see; ``show``: one of them; ``logs``: a node's output;
            ``images``: what APPLICATION can be.
        job_id: the job, for ``show`` and ``logs``.
        node: index of the node whose log is wanted.
        agent: the agent's log instead of the container's output.
        follow: go on until the job ends.
    """

    kind: Kind
    job_id: str = ""
    node: int = 0
    agent: bool = False
    follow: bool = False

    def __post_init__(self) -> None:
        """Refuse what can't be a question."""
        if self.kind in ("show", "logs") and not JOB_ID.fullmatch(self.job_id):
            raise RequestError(
                f"{self.job_id!r} is no job id; expected a number, or number_index of an array"
            )
        if not 0 <= self.node <= MAX_NODE:
            raise RequestError(f"there is no node {self.node}")

    def to_json(self) -> bytes:
        """Return the question as one line of JSON."""
        return json.dumps({"query": dataclasses.asdict(self)}).encode() + b"\n"

    @classmethod
    def from_json(cls, line: bytes) -> Query | None:
        """Parse what :meth:`to_json` made; None if the line is no question but a request.

        Raises:
            RequestError: it is a malformed question.
        """
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(document, dict) or "query" not in document:
            return None
        return cls._checked(document["query"])

    @classmethod
    def _checked(cls, values: Any) -> Query:
        types = {"kind": str, "job_id": str, "node": int, "agent": bool, "follow": bool}
        # bool is a kind of int in Python, but not in a question.
        if (
            not isinstance(values, dict)
            or values.keys() != types.keys()
            or any(type(values[name]) is not kind for name, kind in types.items())
            or values["kind"] not in get_args(Kind)
        ):
            raise RequestError("the question to the broker is malformed")
        return cls(**values)
