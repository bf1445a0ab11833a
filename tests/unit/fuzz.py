# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strategies for what crosses a boundary: any JSON, and a good document with something wrong in it."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

NASTY = st.sampled_from(
    ["", " ", "\n", "\0", "..", "../..", "/", "-x", ";id", "$(id)", "{{ 7*7 }}", "é", "٣", "²", "\ud800", "\udcff",
     "a" * 300, "9" * 5000, "-1", "0", "1e400", "NaN", "null", "true"]
)  # fmt: skip
TEXT = st.text(max_size=20) | NASTY
NUMBER = (
    st.integers() | st.integers(-2, 300) | st.floats() | st.sampled_from([10**30, -(10**30), 2**63, 2**31])
)
SCALAR = st.none() | st.booleans() | NUMBER | TEXT
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=8
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a document, its own included."""
    found = [path]
    if isinstance(document, dict):
        found += [place for key, value in document.items() for place in places(value, (*path, key))]
    elif isinstance(document, list):
        found += [place for index, value in enumerate(document) for place in places(value, (*path, index))]
    return found


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> Any:
    """Draw a document in which one to three values are replaced, removed or added."""
    result = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(result)))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(JSON)
            continue
        parent = result
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if action == "replace":
            parent[path[-1]] = draw(JSON)
        elif action == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(TEXT)] = draw(JSON)
        else:
            parent.insert(0, draw(JSON))
    return result
