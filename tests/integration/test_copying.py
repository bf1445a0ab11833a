# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying with the real rsync: full disks and quotas, signals, going on, and what checksums find."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dockerjob.submit.rsync import Signals, Transfer, copy
from dockerjob_agent.mpi import write_job_hostfile
from dockerjob_agent.spec import Node
from dockerjob_core import names
from dockerjob_core.errors import ConfigError, RequestError

pytestmark = pytest.mark.integration

ODD = ["-n", "#note", "a b", "new\nline", "host:file", "ü", "*", ";", "\udcff", ".dot"]

NO_QUOTA = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    struct stat status;
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (fd > 2 && !fstat(fd, &status) && S_ISREG(status.st_mode)) { errno = EDQUOT; return -1; }
    return real(fd, data, size);
}
"""
"""The kernels that run the tests have no quota; this is what write(2) says where it is used up."""

WRAPPER = """
import sys
from dockerjob.submit.rsync import Signals, Transfer, copy
from dockerjob_core.errors import StoppedError
signals = Signals()
signals.install()
try:
    print(copy(Transfer("STAGE_IN", *sys.argv[1:2], ("big",), sys.argv[2], keep_paths=False, follow=True), signals))
except StoppedError as error:
    sys.exit(error.exit_status)
"""


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Two empty directories: from here, to there."""
    places = tmp_path / "from", tmp_path / "to"
    for place in places:
        place.mkdir()
    return places


@pytest.fixture
def small(places: tuple[Path, Path]) -> Iterator[Path]:
    """The second directory, on a file system of 1 MB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", places[1]], check=True)
    yield places[1]
    subprocess.run(["umount", places[1]], check=True)


def bring(source: Path, target: Path, *paths: str, keep_paths: bool = True, follow: bool = False) -> str:
    root = str(source)
    return copy(
        Transfer("STAGE_OUT", root, paths, str(target), keep_paths=keep_paths, follow=follow), Signals()
    )


def content(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_any_name_arrives_and_keeps_mode_time_and_directory(places: tuple[Path, Path]) -> None:
    source, target = places
    for name in ODD:
        for path in (source / name, source / "deep/er" / name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name, errors="surrogateescape")
    (source / "a b").chmod(0o750)
    os.utime(source / "a b", (1, 1))
    source.chmod(0o777)
    target.chmod(0o700)
    assert bring(source, target, *ODD, "deep/er") == ""
    assert content(target) == content(source)
    assert ((target / "a b").stat().st_mode & 0o777, (target / "a b").stat().st_mtime) == (0o750, 1)
    assert target.stat().st_mode & 0o777 == 0o700


def test_inputs_lose_their_directories_and_links_become_what_they_lead_to(places: tuple[Path, Path]) -> None:
    source, target = places
    (source / "far/case").mkdir(parents=True)
    (source / "far/case/file").write_text("1")
    (source / "data").write_text("2")
    (source / "far/case/inside").symlink_to("file")
    (source / "far/case/outside").symlink_to(source / "data")
    (source / "far/case/beside").symlink_to("../../data")
    assert bring(Path("/"), target, str(source / "far/case"), keep_paths=False, follow=True) == ""
    two = {"case/outside": b"2", "case/beside": b"2"}
    assert content(target) == {"case/file": b"1", "case/inside": b"1", **two}
    assert not [path for path in (target / "case").iterdir() if path.is_symlink()]
    (source / "far/case/beside").unlink()
    (source / "far/case/beside").symlink_to("nowhere")
    assert bring(Path("/"), target, str(source / "far/case"), keep_paths=False, follow=True) != ""


def test_what_differs_though_size_and_time_are_the_same_is_copied(places: tuple[Path, Path]) -> None:
    for place, text in zip(places, ("right", "wrong"), strict=True):
        (place / "file").write_text(text)
        os.utime(place / "file", (1, 1))
    assert bring(*places, "file") == ""
    assert (places[1] / "file").read_text() == "right"


def test_a_full_file_system_is_said_in_the_system_s_words(places: tuple[Path, Path], small: Path) -> None:
    (places[0] / "big").write_bytes(os.urandom(2 << 20))
    (places[0] / "little").write_bytes(b"x")
    failed = bring(places[0], small, "big", "little")
    assert "No space left on device (28)" in failed
    assert str(small) in failed
    assert "\n" not in failed
    assert not (small / "big").exists()
    (places[0] / "big").write_bytes(os.urandom(1 << 19))
    assert bring(places[0], small, "big", "little") == ""
    assert content(small) == content(places[0])


def test_a_hostfile_that_finds_no_space_is_said_and_not_begun(small: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small / "full").write_bytes(bytes(2 << 20))
    before = set(small.rglob("*"))
    with pytest.raises(RequestError, match=r"cannot write HOSTFILE machines in .*: No space left on device"):
        write_job_hostfile([Node(0, "7_node_0", "node1", 2, "10.0.0.1")], small, "machines")
    assert set(small.rglob("*")) == before


def test_a_used_up_quota_is_said_in_the_system_s_words(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "noquota.so"
    build = ["gcc", "-shared", "-fPIC", "-o", str(library), "-x", "c", "-", "-ldl"]
    subprocess.run(build, input=NO_QUOTA, text=True, check=True)
    (places[0] / "big").write_bytes(os.urandom(1 << 20))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    assert "Disk quota exceeded (122)" in bring(*places, "big")


def test_what_may_not_be_read_is_named(places: tuple[Path, Path]) -> None:
    failed = bring(*places, "missing")
    assert "missing" in failed
    assert "No such file or directory" in failed


def test_a_host_without_rsync_is_named(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dockerjob.submit.rsync.RSYNC", "/usr/bin/no-such-rsync")
    with pytest.raises(ConfigError, match=r"can't start /usr/bin/no-such-rsync on .*cluster_setup.yml"):
        bring(*places, "file")


def kept(target: Path) -> int:
    """How much of the file has come so far: under a passing name, or kept for the next try."""
    return max((path.stat().st_size for path in target.rglob("*") if path.is_file()), default=0)


@pytest.fixture
def wrapper(places: tuple[Path, Path], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that copies 64 MB, slowly: it is suspended in the midst of it."""
    (places[0] / "big").write_bytes(os.urandom(64 << 20))
    slow = tmp_path / "rsync"
    slow.write_text('#!/bin/sh\nexec /usr/bin/rsync --bwlimit=4m "$@"\n')
    slow.chmod(0o755)
    code = f"import dockerjob.submit.rsync as r; r.RSYNC = {str(slow)!r}\n{WRAPPER}"
    argv = [sys.executable, "-c", code, *map(str, places)]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    until(lambda: kept(places[1]) > 4 << 20)
    yield process
    process.kill()
    process.communicate()


def until(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_ends_the_copying_and_the_next_try_goes_on_there(
    places: tuple[Path, Path], wrapper: subprocess.Popen[str], number: signal.Signals
) -> None:
    """A batch system signals the whole process group; rsync itself would take USR2 for the good end."""
    os.killpg(wrapper.pid, number)
    out, err = wrapper.communicate(timeout=60)
    assert (wrapper.returncode, out) == (128 + number, ""), err
    assert [str(path.relative_to(places[1])) for path in sorted(places[1].rglob("*"))] == [
        names.STAGING_PARTIAL,
        f"{names.STAGING_PARTIAL}/big",
    ]
    assert 4 << 20 < kept(places[1]) < 64 << 20
    # What has come is used: it counts as right only where it is.
    transfer = Transfer("", str(places[0]), (), str(places[1]), keep_paths=False, follow=True)
    argv = [*transfer.argv(verify=False)[:-3], "--stats", *transfer.argv(verify=False)[-3:]]
    stats = subprocess.run(argv, input="/big", capture_output=True, text=True, check=True).stdout
    matched = int(stats.partition("Matched data: ")[2].split()[0].replace(",", ""))
    assert matched > 3 << 20
    assert bring(*places, "big") == ""
    assert content(places[1]) == content(places[0])


def test_copying_is_suspended_with_the_wrapper_and_goes_on(
    places: tuple[Path, Path], wrapper: subprocess.Popen[str]
) -> None:
    def states() -> set[str]:
        listed = subprocess.run(
            ["ps", "-o", "stat=", "--pid", str(wrapper.pid), "--ppid", str(wrapper.pid)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return {line[0] for line in listed.split()}

    wrapper.send_signal(signal.SIGTSTP)
    until(lambda: states() == {"T"})
    wrapper.send_signal(signal.SIGCONT)
    until(lambda: "T" not in states())
    before = kept(places[1])
    until(lambda: kept(places[1]) > before)
    wrapper.send_signal(signal.SIGTERM)
    assert wrapper.wait(60) == 143
