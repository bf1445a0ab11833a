# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What passes between a user's terminal and COMMAND's: lines of JSON, in both directions.

To COMMAND: ``{"data": BASE64}`` is what was typed, ``{"size": [ROWS, COLUMNS]}`` the window's.  From
COMMAND: ``{"data": BASE64}`` is what it writes, ``{"taken": BYTES}`` how much of what was typed it has been
given, ``{"state": "begun"}`` and ``"ended"`` when the terminal is COMMAND's.

What was typed and is not taken yet is never more than :data:`WINDOW`, so no pipe on the way fills up:
a signal or a new size gets past a COMMAND that doesn't read.  The other way, pipes that fill up are
the flow control.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, Literal

WINDOW = 32 * 1024
"""Bytes that may have been typed and not taken."""

TYPED = 3000
"""Bytes of one line to COMMAND, at most: with its frame the line is below PIPE_BUF, so it is written whole."""

WRITTEN = 16 * 1024
"""Bytes of one line from COMMAND, at most."""

LONGEST_LINE = 32 * 1024


@dataclass(frozen=True)
class Data:
    """What was typed, or what COMMAND writes."""

    data: bytes


@dataclass(frozen=True)
class Size:
    """Size of the window."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Taken:
    """So many typed bytes were given to COMMAND's terminal."""

    count: int


@dataclass(frozen=True)
class State:
    """The terminal is COMMAND's from now on, or no more."""

    now: Literal["begun", "ended"]


Word = Data | Size | Taken | State
BEGUN, ENDED = State("begun"), State("ended")


def encode(word: Word) -> bytes:
    """Return *word* as one line."""
    document: dict[str, Any]
    match word:
        case Data(data):
            document = {"data": base64.b64encode(data).decode()}
        case Size(rows, columns):
            document = {"size": [rows, columns]}
        case Taken(count):
            document = {"taken": count}
        case State(now):
            document = {"state": now}
    return json.dumps(document).encode() + b"\n"


def decode(line: bytes) -> Word | None:
    """Return the word of a line; None for any other text."""
    try:
        match json.loads(line):
            case {"data": str(text)}:
                return Data(base64.b64decode(text, validate=True))
            case {"size": [int(rows), int(columns)]} if _is_size(rows) and _is_size(columns):
                return Size(rows, columns)
            case {"taken": int(count)} if 0 <= count <= WINDOW:
                return Taken(count)
            case {"state": "begun"}:
                return BEGUN
            case {"state": "ended"}:
                return ENDED
    except (ValueError, RecursionError):
        pass
    return None


def _is_size(number: int) -> bool:
    return 0 <= number <= 0xFFFF


class Lines:
    """Cuts what is read from a pipe into words; what is none is left out."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._rest = b""

    def feed(self, data: bytes) -> list[Word]:
        """Return the words that *data* ends, in their order."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        # Longer than any line can be: the beginning of one that is none.
        self._rest = self._rest[: LONGEST_LINE + 1]
        return [word for line in lines if (word := decode(line)) is not None]
