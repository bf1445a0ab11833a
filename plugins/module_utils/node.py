# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's node on this host as a whole: its directory, its container, its port.

What ``hpc.dockerjob.job_node`` does.  Everything made carries the job's mark (label,
``external_ids``, link alias, directory name), and everything is removed by that mark,
so a set-up that broke off half way and one that is whole are taken down alike.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from . import flows, jobdir, names, orphans, ovs, port
from .cgroup import JobCgroup, Usage, bound_to, permitted_devices, traffic
from .container import ContainerSpec, Gpus, Limits, Mount, Payload, Ulimit, payload, without_volumes
from .devices import DeviceRule, Permitted, resolve
from .errors import HostError
from .infra import Infra, directory_to_mount, injected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .container import Engine, Found
    from .flows import Flow


@dataclass(frozen=True)
class NodeSpec:
    """All that makes a node: what its container is, its files, its place in the job network."""

    container: ContainerSpec
    bridge: str
    interface: str
    address: str
    vlan: int
    mtu: int
    files: tuple[jobdir.JobFile, ...] = ()
    writable_files: tuple[jobdir.JobFile, ...] = ()
    runtime_root: str = names.RUNTIME_ROOT
    infra: Infra = "image"
    infra_directory: str = names.INFRA_HOST
    injected_overlays: tuple[Mount, ...] = ()
    """Mounts that take the place of others if the portable infrastructure is used."""

    @property
    def directory(self) -> jobdir.JobDirectory:
        """The job's directory on this host."""
        return jobdir.JobDirectory(self.container.job_id, self.runtime_root)

    def port_of(self, found: Found) -> port.PortSpec:
        """The port of the started container *found*."""
        job_id = self.container.job_id
        return port.PortSpec(
            bridge=self.bridge,
            container_id=found.id,
            pid=found.pid,
            link=names.port_name(found.name),
            interface=self.interface,
            address=self.address,
            vlan=self.vlan,
            mtu=self.mtu,
            alias=names.link_alias(job_id),
            external_ids={names.OVS_JOB: job_id},
            owner=job_id,
        )

    def payload(self) -> Payload:
        """The container's payload, whose digest covers the job's files too."""
        digest = hashlib.sha256()
        for area, files in ((jobdir.READ_ONLY, self.files), (jobdir.WRITABLE, self.writable_files)):
            for file in files:
                content = hashlib.sha256(file.content).hexdigest()
                digest.update(f"{area} {file.name!r} {file.mode:o} {file.owner} {content}\n".encode())
        return payload(self.container, digest.hexdigest())


class Clock:
    """Takes the time of each step, in milliseconds."""

    def __init__(self) -> None:
        """Begin with no step."""
        self.steps: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the body as step *name*."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.steps.append({"name": name, "ms": round((time.monotonic() - begin) * 1000, 1)})


@dataclass(frozen=True)
class Leftovers:
    """What this host holds of a job."""

    containers: tuple[Found, ...]
    ports: tuple[str, ...]
    links: tuple[str, ...]
    directory: bool
    flows: Mapping[str, frozenset[Flow]] = field(default_factory=dict)
    """By bridge."""
    cgroup: JobCgroup | None = None

    def __bool__(self) -> bool:
        """Tell whether there is anything."""
        there = self.containers or self.ports or self.links or self.directory or self.flows or self.cgroup
        return bool(there)

    def summary(self) -> dict[str, Any]:
        """Return it as plain data, for ``--diff``."""
        return {
            "containers": sorted(found.name for found in self.containers),
            "ports": sorted(self.ports),
            "links": sorted(self.links),
            "directory": self.directory,
            "flows": sorted(str(flow) for own in self.flows.values() for flow in own),
            "cgroup": bool(self.cgroup),
        }


NOTHING = Leftovers((), (), (), directory=False)


@dataclass(frozen=True)
class Outcome:
    """What a run changed, or in check mode would change."""

    changed: bool
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    found: Found | None = None
    nodes: tuple[Mapping[str, Any], ...] = field(default=())
    usage: Usage = field(default_factory=Usage)


def parse(job_id: str, runtime_root: str, bridge: str, spec: Mapping[str, Any], run: str = "") -> NodeSpec:
    """Build the specification from the module's options, which Ansible has checked and typed.

    Raises:
        HostError: a file's content is no base64, the seccomp profile cannot be read, or a device is missing
            or refused.
    """
    limits = {key: value for key, value in (spec["limits"] or {}).items() if value is not None}
    patterns = limits.pop("cpuset_of", ())
    limits["cpuset"] = limits.get("cpuset") or bound_to(patterns)
    limits["ulimits"] = tuple(Ulimit(**limit) for limit in limits.get("ulimits", ()))
    cgroup = JobCgroup.of(names.check_job_id(job_id))
    node = NodeSpec(
        container=ContainerSpec(
            job_id=job_id,
            node_index=spec["node_index"],
            image=spec["image"],
            uid=spec["uid"],
            gid=spec["gid"],
            groups=tuple(spec["groups"]),
            hostname=spec["hostname"],
            entrypoint=tuple(spec["entrypoint"]),
            env=spec["env"],
            mounts=tuple(Mount(**mount) for mount in spec["mounts"]),
            limits=Limits(**limits),
            seccomp=_seccomp(spec["seccomp_profile"]),
            apparmor=spec["apparmor_profile"],
            devices=_devices(spec["devices"], spec["device_cgroups"]),
            gpus=_gpus(spec["gpus"]),
            cgroup_parent=cgroup.parent if cgroup else None,
            labels=spec["labels"],
            run=run,
        ),
        bridge=bridge,
        interface=spec["interface"],
        address=spec["address"],
        vlan=spec["vlan"],
        mtu=spec["mtu"],
        files=tuple(map(_file, spec["files"])),
        writable_files=tuple(map(_file, spec["writable_files"])),
        runtime_root=runtime_root,
        infra=spec["infra"],
        infra_directory=spec["infra_directory"],
    )
    return replace(
        node,
        container=replace(node.container, mounts=_job_mounts(node, spec["overlays"])),
        injected_overlays=tuple(_overlay(node, overlay) for overlay in spec["injected_overlays"]),
    )


def _devices(rules: Sequence[Mapping[str, Any]], cgroups: Sequence[str]) -> tuple[str, ...]:
    text = permitted_devices(cgroups)
    return resolve([DeviceRule(**rule) for rule in rules], None if text is None else Permitted.of(text))


def _gpus(option: Mapping[str, Any] | None) -> Gpus | None:
    return Gpus(option["driver"], tuple(option["names"])) if option else None


def _file(option: Mapping[str, Any]) -> jobdir.JobFile:
    try:
        content = base64.b64decode(option["content_b64"], validate=True)
        mode = int(option["mode"], 8)
    except ValueError as error:
        raise HostError(f"file {option['name']}: {error}") from error
    return jobdir.JobFile(option["name"], content, mode, option["owner"])


def _seccomp(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as profile:
            return json.dumps(json.load(profile), separators=(",", ":"))
    except (OSError, ValueError) as error:
        raise HostError(f"cannot read the seccomp profile {path}: {error}") from error


def _job_mounts(node: NodeSpec, overlays: Sequence[Mapping[str, str]]) -> tuple[Mount, ...]:
    """Add to the site's mounts those that every job has; a target the site names itself stays the site's."""
    base = node.directory.path
    own = [
        Mount(f"{base}/{jobdir.READ_ONLY}", names.CONTAINER_READ_ONLY, read_only=True),
        Mount(f"{base}/{jobdir.WRITABLE}", names.CONTAINER_WRITABLE),
        Mount(f"{node.runtime_root}/relay", names.RELAY_DIRECTORY, read_only=True),
    ]
    own += [_overlay(node, overlay) for overlay in overlays]
    given = {mount.target for mount in node.container.mounts}
    return (*node.container.mounts, *(mount for mount in own if mount.target not in given))


def _overlay(node: NodeSpec, overlay: Mapping[str, str]) -> Mount:
    """Make the mount of a file of the job's directory."""
    area, _, name = overlay["file"].partition("/")
    if area not in (jobdir.READ_ONLY, jobdir.WRITABLE) or "/" in name or name in ("", ".", ".."):
        raise HostError(f"not a file of the job's directory: {overlay['file']!r}")
    source = f"{node.directory.path}/{overlay['file']}"
    return Mount(source, overlay["target"], read_only=area == jobdir.READ_ONLY)


def _for_image(spec: NodeSpec, engine: Engine) -> NodeSpec:
    """Do what the node's image asks for: give it the portable infrastructure if that is the choice, and no volumes."""
    image = engine.image(spec.container.image)
    container = without_volumes(spec.container, image)
    if directory := directory_to_mount(spec.infra, image, spec.infra_directory):
        container = injected(container, image, directory, spec.injected_overlays)
    return replace(spec, container=container)


def present(spec: NodeSpec, engine: Engine, clock: Clock, *, check_mode: bool) -> Outcome:
    """Make the node as wanted; if a step fails, remove what there is of the job, then raise."""
    job_id = spec.container.job_id
    with clock.step("look"):
        spec = _for_image(spec, engine)
        body = spec.payload()
        found = engine.find(spec.container.name)
        if found and found.labels.get(names.LABEL_JOB) != job_id:
            raise HostError(
                f"container {found.name} exists and does not carry job {job_id}'s mark; "
                f"it is left alone: remove it yourself or submit again"
            )
        state = ovs.read_state()
        state.guarded_bridge(spec.bridge)
    if found and found.running and found.labels.get(names.LABEL_SPEC) == body["Labels"][names.LABEL_SPEC]:
        return _repair_port(spec, found, state, clock, check_mode=check_mode)
    leftovers = Leftovers(
        engine.of_job(job_id),
        tuple(item.name for item in state.find({names.OVS_JOB: job_id})),
        tuple(filter(port.link_exists, (names.port_name(spec.container.name),))),
        spec.directory.exists(),
        # Only for show: setting the port's flows removes any that the job had, and looking takes 7 ms.
        _flows_of(job_id, state, spec.bridge) if check_mode else {},
        _cgroup_of(job_id),
    )
    after = {**_wanted(spec), "spec": body["Labels"][names.LABEL_SPEC]}
    if check_mode:
        return Outcome(True, leftovers.summary(), after)
    if leftovers:
        absent(spec.directory, spec.bridge, engine, clock, check_mode=False)
        state = ovs.read_state()
    return Outcome(True, leftovers.summary(), after, _build(spec, body, state, engine, clock))


def _wanted(spec: NodeSpec) -> dict[str, Any]:
    name = spec.container.name
    link = names.port_name(name)
    guard = flows.Guard.of(spec.container.job_id, link, spec.address)
    return {
        "containers": [name],
        "ports": [link],
        "links": [link],
        "directory": True,
        "flows": sorted(map(str, guard.flows(link))),
        "cgroup": spec.container.cgroup_parent is not None,
    }


def _repair_port(
    spec: NodeSpec, found: Found, state: ovs.OvsState, clock: Clock, *, check_mode: bool
) -> Outcome:
    """See to the port of a container that runs as wanted."""
    with clock.step("port"):
        want = spec.port_of(found)
        have = port.read_have(want, state)
        steps = port.plan_attach(want, have)
        if not check_mode:
            port.execute(steps)
    wanted = _wanted(spec)
    own = flows.of_owner(have.flows or (), want.guard().cookie)
    there = {**wanted, "flows": sorted(map(str, own))}
    before = {**there, "changes": [step.name for step in steps]} if steps else wanted
    return Outcome(bool(steps), before, wanted, found)


def _build(spec: NodeSpec, body: Payload, state: ovs.OvsState, engine: Engine, clock: Clock) -> Found:
    made, directory = spec.container, spec.directory
    directory.create(made.run)
    with directory.locked() as there:
        if not there:
            raise HostError(f"job {made.job_id} is being taken down on this host")
        try:
            with clock.step("files"):
                directory.bound()
                directory.fill(spec.files, spec.writable_files, made.uid, made.gid)
            with clock.step("container"):
                found = engine.start(made.name, body)
            with clock.step("port"):
                _connect(spec, found, state, engine)
        except HostError as error:
            raise _rolled_back(error, spec, engine, clock) from error
    return found


def _connect(spec: NodeSpec, found: Found, state: ovs.OvsState, engine: Engine) -> None:
    """Attach the port right after the start, since the agent waits for its interface.

    It needs no look first: a container just started has no interface but lo.
    """
    try:
        port.execute(port.plan_attach(spec.port_of(found), port.Have(state)))
    except HostError:
        # Why the network namespace went away is worth more than that it did.
        now = engine.find(found.id)
        if now and not now.running:
            raise HostError(f"container {now.name} ended at once with exit status {now.exit_code}") from None
        raise


def _rolled_back(error: HostError, spec: NodeSpec, engine: Engine, clock: Clock) -> HostError:
    """Remove what there is of the job; return *error*, with the agent's last word and what went wrong here."""
    try:
        nodes, _ = _remove(look(spec.directory, spec.bridge, engine), spec.directory, engine, clock)
    except HostError as second:
        return HostError(f"{error} (and taking it down failed: {second})")
    log = next((node["agent_log"] for node in nodes if node["agent_log"]), None)
    return HostError(f"{error} (the agent's last line: {log.splitlines()[-1]})") if log else error


def look(directory: jobdir.JobDirectory, bridge: str, engine: Engine) -> Leftovers:
    """Find by mark all that this host holds of the job, flows in *bridge* and where it has ports."""
    job_id = directory.job_id
    containers = engine.of_job(job_id)
    links = {*port.links_with_alias(names.link_alias(job_id))}
    state = ovs.read_state()
    return Leftovers(
        containers,
        tuple(item.name for item in state.find({names.OVS_JOB: job_id})),
        tuple(sorted(links)),
        directory.exists(),
        _flows_of(job_id, state, bridge),
        _cgroup_of(job_id),
    )


def _cgroup_of(job_id: str) -> JobCgroup | None:
    cgroup = JobCgroup.of(job_id)
    return cgroup if cgroup and cgroup.exists() else None


def _flows_of(job_id: str, state: ovs.OvsState, bridge: str) -> Mapping[str, frozenset[Flow]]:
    bridges = {bridge, *(item.bridge for item in state.find({names.OVS_JOB: job_id}))}
    return port.look_for_flows(state, bridges, {names.flow_cookie(job_id)})


def _remove(
    leftovers: Leftovers, directory: jobdir.JobDirectory, engine: Engine, clock: Clock
) -> tuple[tuple[Mapping[str, Any], ...], Usage]:
    """Remove containers, then ports and links, then files; say how the containers ended and what the job used.

    One that fails does not stop the next.  Files stay while a container does: they say
    what it was.
    """
    errors: list[str] = []

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except HostError as error:
            errors.append(str(error))

    with clock.step("read output"):
        outputs = {found.id: _last_output(found, engine) for found in leftovers.containers}
    counted, usage = traffic(leftovers.links), Usage()
    with clock.step("remove containers"):
        for found in leftovers.containers:
            attempt(partial(engine.remove, found.id))
    blocked = bool(errors)
    for found in leftovers.containers:
        if found.never_ran and not blocked:
            attempt(partial(orphans.remove, found.id))
    if leftovers.cgroup and not blocked:
        with clock.step("remove cgroup"):
            usage = leftovers.cgroup.usage()
            attempt(leftovers.cgroup.remove)
    # A link whose other end a guard holds is still there, and has by now counted all.
    usage = usage.with_traffic(traffic(leftovers.links) or counted)
    with clock.step("remove port"):
        attempt(partial(port.detach, leftovers.ports, leftovers.links))
        attempt(partial(port.execute, port.plan_detach((), (), port.marks_of(leftovers.flows))))
    nodes = _report(leftovers, directory, outputs)
    if leftovers.directory and not blocked:
        with clock.step("remove files"):
            attempt(directory.remove)
    if errors:
        raise HostError("; ".join(errors))
    return nodes, usage


def absent(
    directory: jobdir.JobDirectory,
    bridge: str,
    engine: Engine,
    clock: Clock,
    *,
    check_mode: bool,
    run: str | None = None,
) -> Outcome:
    """Remove all that this host holds of the job; report how its containers ended.

    With *run*, only if it is of that run: what a later run of the same job id has here stays.

    Raises:
        HostError: something can't be removed, or it does not show yet which run it is of.
    """
    nodes: tuple[Mapping[str, Any], ...] = ()
    usage = Usage()
    with directory.locked():
        with clock.step("look"):
            leftovers = look(directory, bridge, engine)
        if run is not None and leftovers and _of_another_run(leftovers, directory, run):
            leftovers = NOTHING
        if leftovers and not check_mode:
            nodes, usage = _remove(leftovers, directory, engine, clock)
    return Outcome(bool(leftovers), leftovers.summary(), NOTHING.summary(), nodes=nodes, usage=usage)


def _of_another_run(leftovers: Leftovers, directory: jobdir.JobDirectory, run: str) -> bool:
    """Tell whether what is here is of another run than *run*; what says nothing of its run is of a dead one."""
    marks = {found.labels.get(names.LABEL_RUN, "") for found in leftovers.containers}
    if leftovers.directory:
        mark = directory.run()
        if mark is None and not directory.settled():
            raise HostError(
                f"job {directory.job_id} is just being set up on this host; try again in a minute"
            )
        marks.add(mark or "")
    return bool(marks - {run, ""})


def _last_output(found: Found, engine: Engine) -> list[str]:
    """Return the ends of both streams, in base64; nothing of a container that still writes, or is going."""
    if found.running:
        return ["", ""]
    try:
        return [base64.b64encode(end).decode() for end in engine.last_output(found.id)]
    except HostError:
        return ["", ""]


def _report(
    leftovers: Leftovers, directory: jobdir.JobDirectory, outputs: Mapping[str, list[str]]
) -> tuple[Mapping[str, Any], ...]:
    """Say how each node ended; the files are the job's on this host, also if no container is left."""
    status, log = directory.exit_status(), directory.agent_log()
    nothing: Mapping[str, Any] = {
        "name": None,
        "running": False,
        "exit_code": None,
        "oom_killed": False,
        "last_output_b64": ["", ""],
    }
    ended: list[Mapping[str, Any]] = [
        {
            "name": found.name,
            "running": found.running,
            "exit_code": found.exit_code,
            "oom_killed": found.oom_killed,
            "last_output_b64": outputs[found.id],
        }
        for found in leftovers.containers
    ] or [nothing]
    return tuple({**node, "exit_status": status, "agent_log": log} for node in ended)
