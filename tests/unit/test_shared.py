# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An answer that is found once for many who ask."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dockerjob.broker import shared
from dockerjob_core.errors import HostError, RegistryError


class Finder:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Any:
        self.count += 1
        time.sleep(0.2)
        return [{"number": self.count}]


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Any]:
    return lambda find, age=60: shared.shared_answer(tmp_path / "answer.json", age, find)


def test_it_is_the_broker_s_alone(ask: Callable[..., Any], tmp_path: Path) -> None:
    ask(Finder())
    assert (tmp_path / "answer.json").stat().st_mode & 0o777 == 0o600


def test_many_who_ask_at_once_have_it_found_once(ask: Callable[..., Any]) -> None:
    find, told = Finder(), []
    threads = [threading.Thread(target=lambda: told.append(ask(find))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (find.count, told) == (1, [[{"number": 1}]] * 5)


@pytest.mark.parametrize("shift", [-61, 30])
def test_an_answer_that_is_old_or_of_the_future_is_found_again(
    ask: Callable[..., Any], tmp_path: Path, shift: int
) -> None:
    find = Finder()
    ask(find)
    then = time.time() + shift
    os.utime(tmp_path / "answer.json", (then, then))
    assert ask(find) == [{"number": 2}]
    assert ask(find) == [{"number": 2}]


def test_who_wants_it_of_now_gets_that_and_leaves_it_for_others(ask: Callable[..., Any]) -> None:
    find = Finder()
    assert [ask(find), ask(find, 0), ask(find)] == [[{"number": 1}], [{"number": 2}], [{"number": 2}]]


@pytest.mark.parametrize("left", ["", '[{"number": 9}, {"num'])
def test_what_a_killed_broker_left_is_no_answer(ask: Callable[..., Any], tmp_path: Path, left: str) -> None:
    (tmp_path / "answer.json").write_text(left)
    assert [ask(Finder()), ask(Finder())] == [[{"number": 1}]] * 2


def test_a_failure_is_raised_and_not_kept(ask: Callable[..., Any]) -> None:
    def fail() -> None:
        raise RegistryError("out of reach")

    with pytest.raises(RegistryError):
        ask(fail)
    assert ask(Finder()) == [{"number": 1}]
    # What was there before goes on being an answer, as long as it is new enough.
    with pytest.raises(RegistryError):
        ask(fail, 0)
    assert ask(fail) == [{"number": 1}]


def test_nobody_waits_for_ever(
    ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "PATIENCE", 0.3)
    with (tmp_path / "answer.json").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(HostError, match="try again later"):
            ask(Finder())
