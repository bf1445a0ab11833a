# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole lab: up, down and its state. Each step looks before it acts, so all may be repeated."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from . import cgroups, host, inventory, network, root
from .lsf import programs
from .model import REPOSITORY, STATE_ROOT, Lab, LabError, LabHost, Record, recorded
from .system import progress, run, wait_until, write_if_changed

SHARED = {"home": 0o755, "scratch": 0o755, "share": 0o755, "cp": 0o700}
"""Directories of the lab's state: those that all hosts share, and the ssh control sockets."""


@dataclass(frozen=True)
class HostStatus:
    """One host as ``status`` shows it."""

    name: str
    address: str
    up: bool
    pid: int | None
    netns: str
    cgroup: str
    processes: int
    memory_bytes: int | None


@dataclass(frozen=True)
class Status:
    """The lab as ``status`` shows it."""

    name: str
    state: str
    state_directory: str
    inventory: str
    hosts: tuple[HostStatus, ...]

    def as_json(self) -> str:
        """The same for programs."""
        return json.dumps(asdict(self), indent=2)


def up(lab: Lab) -> bool:
    """Make *lab* whole; True if anything was missing."""
    changed = _ensure_state(lab)
    changed = _remove_surplus(lab) or changed
    changed = network.ensure_switch(lab) or changed
    links = network.switch_links(lab)
    started = []
    for each in lab.hosts:
        changed = network.ensure_host(lab, each, links) or changed
        if host.init_pid(each) is None:
            progress(f"starting {each.name} ({each.address})")
            host.stop(each)
            cgroups.remove(each.cgroup)
            cgroups.create(each.system_cgroup)
            host.start(lab, each)
            started.append(each)
    for each in started:
        host.wait_ready(each)
    for each in lab.hosts:
        changed = host.refresh_hosts_file(lab, each) or changed
    programs.install(lab.state / "share")
    return _write_outputs(lab) or changed or bool(started)


def would_change(lab: Lab) -> bool:
    """Whether :func:`up` has anything to do."""
    record = recorded(lab.name)
    return (
        record is None
        or not record.belongs_to(REPOSITORY)
        or record.compute != lab.compute
        or status(lab).state != "up"
    )


def _remove_strangers(lab: Lab) -> bool:
    """Remove what another checkout left under this name, unless that is in use; True if it was there."""
    record = recorded(lab.name)
    if record is None or record.belongs_to(REPOSITORY):
        return False
    running = any(host.init_pid(each) for each in Lab(lab.name, record.compute).hosts)
    if running and record.belongs_to(Path(record.checkout)):
        raise LabError(
            f"the lab {lab.name!r} is in use by {record.checkout}: "
            f"run `LAB_NAME={lab.name} make lab-down` there, or take another LAB_NAME here"
        )
    progress(f"removing a lab {lab.name!r} that is not this checkout's")
    return _remove_hosts(lab)


def _ensure_state(lab: Lab) -> bool:
    changed = _remove_strangers(lab)
    mark = lab.mark.read_text() if lab.mark.exists() else uuid.uuid4().hex
    record = Record(lab.name, lab.compute, mark, str(REPOSITORY)).as_json()
    if lab.record.exists():
        changed = write_if_changed(lab.record, record) or changed
    else:
        _make_state(lab, record)
        lab.output.mkdir(parents=True, exist_ok=True)
        write_if_changed(lab.mark, mark)
        changed = True
    for name, mode in SHARED.items():
        directory = lab.state / name
        if not directory.is_dir():
            directory.mkdir()
            directory.chmod(mode)
    if not lab.key.with_suffix(".pub").exists():
        lab.key.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab-{lab.name}", "-f", str(lab.key)])
    return changed


def _make_state(lab: Lab, record: str) -> None:
    """Make the state directory with its record in one step: from then on a half-made lab is known to be one."""
    shutil.rmtree(lab.staging, ignore_errors=True)
    lab.staging.mkdir(parents=True)
    lab.staging.chmod(0o755)
    (lab.staging / lab.record.name).write_text(record)
    try:
        lab.staging.rename(lab.state)
    except OSError as error:
        shutil.rmtree(lab.staging)
        raise LabError(f"{lab.state} exists and is no lab's; choose another name") from error


def _remove_surplus(lab: Lab) -> bool:
    """Remove hosts above the wanted number, left from when the lab was larger."""
    changed = False
    for name in sorted(name for name in _known_host_names(lab) if name not in {h.name for h in lab.hosts}):
        progress(f"removing {name}")
        changed = host.remove(lab.host(int(name.removeprefix("node")))) or changed
    return changed


def _known_host_names(lab: Lab) -> set[str]:
    """Names of all hosts of which anything is there."""
    names = {name.removeprefix(lab.netns_prefix) for name in network.namespaces(lab)} - {"sw"}
    for hierarchy in cgroups.hierarchies():
        group = hierarchy / lab.cgroup.strip("/")
        if group.is_dir():
            names |= {entry.name for entry in os.scandir(group) if entry.is_dir()}
    if lab.state.is_dir():
        names |= {entry.name for entry in os.scandir(lab.state) if (Path(entry.path) / "upper").is_dir()}
    return {name for name in names if name == "head" or (name[:4] == "node" and name[4:].isdigit())}


def _write_outputs(lab: Lab) -> bool:
    lines = [f"{each.name},{each.address} {root.host_key(each)}" for each in lab.hosts]
    changed = write_if_changed(lab.known_hosts, "\n".join(lines) + "\n")
    return write_if_changed(lab.inventory, inventory.text(lab)) or changed


def down(lab: Lab) -> bool:
    """Remove everything of *lab*, whatever of it there is; True if there was anything."""
    changed = _remove_hosts(lab)
    if lab.output.is_dir():
        shutil.rmtree(lab.output)
        changed = True
        _remove_if_empty(lab.output.parent)
    return changed


def _remove_hosts(lab: Lab) -> bool:
    """Remove all of *lab* but what is in the checkout; True if there was anything."""
    changed = False
    for name in sorted(_known_host_names(lab)):
        progress(f"removing {name}")
        changed = host.remove(lab.host(0 if name == "head" else int(name.removeprefix("node")))) or changed
    changed = cgroups.kill_all(lab.cgroup) or changed
    changed = cgroups.remove(lab.cgroup) or changed
    for namespace in sorted(network.namespaces(lab)):
        cgroups.kill(network.processes(namespace))
        network.delete(namespace)
        changed = True
    return _remove_files(lab) or changed


def _remove_files(lab: Lab) -> bool:
    changed = lab.staging.exists()
    shutil.rmtree(lab.staging, ignore_errors=True)
    if lab.record.exists() or (lab.state.is_dir() and not any(lab.state.iterdir())):
        _release_mounts(lab.state)
        # The record goes last, so that an interrupted down still knows the directory as its own.
        for entry in sorted(lab.state.iterdir(), key=lambda path: path == lab.record):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        lab.state.rmdir()
        changed = True
    _remove_if_empty(STATE_ROOT)
    return changed


def _remove_if_empty(directory: Path) -> None:
    """Remove a directory that labs share, unless it is in use, or not there."""
    with suppress(OSError):
        directory.rmdir()


def _mounts_below(directory: Path) -> list[str]:
    mounts = (line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return sorted((mount for mount in mounts if mount.startswith(f"{directory}/")), reverse=True)


def _release_mounts(directory: Path) -> None:
    """Unmount what is mounted below *directory*, before anything in it is deleted."""
    for mount in _mounts_below(directory):
        run(["umount", mount])
    if not wait_until(lambda: not _mounts_below(directory), 5):
        raise LabError(f"still mounted below {directory}: {_mounts_below(directory)}")


def _host_status(each: LabHost) -> HostStatus:
    pid = host.init_pid(each)
    return HostStatus(
        name=each.name,
        address=each.address,
        up=pid is not None,
        pid=pid,
        netns=each.netns,
        cgroup=each.cgroup,
        processes=len(cgroups.processes(each.cgroup)),
        memory_bytes=cgroups.memory_bytes(each.cgroup),
    )


def status(lab: Lab) -> Status:
    """How *lab* is: ``up``, ``down``, or ``partial``, which ``up`` repairs and ``down`` removes."""
    if lab.record.exists():
        hosts = tuple(_host_status(each) for each in lab.hosts)
        state = "up" if all(each.up for each in hosts) and lab.inventory.exists() else "partial"
    else:
        hosts = ()
        state = "partial" if _known_host_names(lab) or network.namespaces(lab) else "down"
    return Status(lab.name, state, str(lab.state), str(lab.inventory), hosts)
