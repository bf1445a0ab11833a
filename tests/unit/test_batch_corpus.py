# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Environments of jobs and answers of batch systems, recorded and constructed: ``corpus/*.yml``.

``SYSTEM.yml`` has environments.  A case's ``environment`` is put over the file's ``base``, where null
takes a variable away; ``files`` are those that variables name, often shortened to ``/h``.  A text may
be made of pieces, ``{each: "n{} 2 ", count: 3}`` for numbers from 1, ``times`` over.  What comes out is
``hosts`` as ``name:slots`` in their order, or the ``sizes``, and the ``job`` id; or an ``error``, a
pattern.

``SYSTEM_proof.yml`` has answers, one per question, each a text or ``{stdout, stderr, status}``; the
``claim`` is ``job`` (``748``, ``748[3]``), ``hosts``, ``user`` and ``uid``.  The outcome is
``proven``, ``held`` (good for a job that was proven before), or ``refused`` or ``unanswered``, a
pattern of the message.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerjob.config import SystemSettings
from dockerjob.schedulers import proof
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_core.errors import BatchError, PolicyError, RequestError
from dockerjob_core.schedulers import SYSTEMS, read_allocation
from dockerjob_core.schedulers.base import Answer

CORPUS = Path(__file__).with_name("corpus")
SOURCE = re.compile(r"(recorded|published|constructed)([,;] .+| \(.+\))?")


def cases(proofs: bool) -> list[Any]:
    found = []
    for path in sorted(CORPUS.glob("*.yml")):
        if path.stem.endswith("_proof") == proofs:
            document = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # both are safe
            found += [
                pytest.param(document, case, id=f"{path.stem}: {case['name']}") for case in document["cases"]
            ]
    return found


def text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    pieces = []
    for piece in value:
        once = "".join(piece["each"].format(number) for number in range(1, piece["count"] + 1))
        pieces.append(once * piece.get("times", 1))
    return "".join(pieces)


def allocation_of(case: dict[str, Any], base: dict[str, Any]) -> Allocation:
    given = {**base, **case.get("environment", {})}
    environment = {name: text_of(value) for name, value in given.items() if value is not None}
    files = {path: text_of(text) for path, text in case.get("files", {}).items()}

    def read_file(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return files[path]

    return read_allocation(environment, read_file, case.get("chosen", ""))


@pytest.mark.parametrize(("document", "case"), cases(proofs=False))
def test_an_environment_is_what_the_corpus_says(document: dict[str, Any], case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(RequestError, match=case["error"]):
            allocation_of(case, document["base"])
        return
    allocation = allocation_of(case, document["base"])
    if document["system"] != "any":
        assert allocation.scheduler == document["system"]
    if "job" in case:
        assert allocation.job_id == case["job"]
    if "sizes" in case:
        assert case["sizes"] == {"hosts": len(allocation.hosts), "slots": allocation.slots}
    else:
        assert " ".join(f"{host.name}:{host.slots}" for host in allocation.hosts) == case["hosts"]


def claim_of(system: str, claim: dict[str, Any]) -> proof.Claim:
    number, _, index = claim["job"].rstrip("]").partition("[")
    hosts = tuple(
        HostSlots(name, int(slots))
        for name, _, slots in (host.partition(":") for host in claim["hosts"].split())
    )
    allocation = Allocation(system, int(number), int(index) if index else None, hosts)
    return proof.Claim(allocation, claim["user"], claim["uid"])


def answer_of(answer: Any) -> Answer:
    return Answer(**answer) if isinstance(answer, dict) else Answer(answer)


@pytest.mark.parametrize(("document", "case"), cases(proofs=True))
def test_an_answer_is_what_the_corpus_says(document: dict[str, Any], case: dict[str, Any]) -> None:
    system = SYSTEMS[document["system"]]
    answers = [answer_of(answer) for answer in case["answers"]]
    claim = claim_of(system.name, {**document["claim"], **case.get("claim", {})})
    settings = SystemSettings(launch_nodes=tuple(case.get("launch_nodes", ())))

    def outcome(phases: frozenset[Any]) -> Any:
        return proof.check(system.record(answers, claim.allocation), system, settings, claim, phases)

    if "unanswered" in case:
        with pytest.raises(BatchError, match=case["unanswered"]):
            outcome(proof.HOLDING)
    elif "refused" in case:
        with pytest.raises(PolicyError, match=case["refused"]):
            outcome(proof.HOLDING)
    elif case.get("held"):
        assert outcome(proof.HOLDING)
        with pytest.raises(PolicyError, match="is not running"):
            outcome(proof.RUNNING)
    else:
        record = outcome(proof.RUNNING)
        limits = {name: getattr(record, name) for name in case["proven"]}
        assert limits == case["proven"]


def test_every_case_says_where_it_is_from() -> None:
    found = [*cases(proofs=False), *cases(proofs=True)]
    assert len(found) >= 200
    for case in found:
        assert SOURCE.fullmatch(case.values[1]["source"]), case.id
    assert len({case.id for case in found}) == len(found)


def test_every_adapter_has_its_corpus() -> None:
    names = {path.stem for path in CORPUS.glob("*.yml")} - {"any"}
    assert names == {*SYSTEMS, *(f"{name}_proof" for name in SYSTEMS)}
