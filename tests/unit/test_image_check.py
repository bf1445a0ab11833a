# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``dockerjob images check``: what is read from a tar stream, and what each fact means."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from dockerjob.imagecheck import report
from dockerjob.imagecheck.check_config import LARGE
from dockerjob.imagecheck.facts import Config, Entry, Facts, Files, Layer
from dockerjob.imagecheck.finding import Finding
from dockerjob.imagecheck.findings import findings
from dockerjob.imagecheck.gather import read_config
from dockerjob.imagecheck.mpi import find_mpi
from dockerjob.imagecheck.scan import CHUNK, scan
from dockerjob_core import names
from dockerjob_core.errors import HostError

OPEN_MPI = b"\0Open MPI v%d.%d.%d\0\x004.1.4\0"
MPICH = b"\0MPICH Version:      %s\0junk\x004.0.2\0\x000.13.99\0"
MVAPICH = b"\0MPICH Version:      %s\0MVAPICH2 Version\0\x002.3.7\0"
INTEL = b"\0MPICH Version\0Intel(R) MPI Library 2021.9 for Linux* OS\0\x001.2.3\0"
GLIBC = b"GNU C Library (Debian GLIBC 2.36-9+deb12u10) stable release version 2.36.\n"
MUSL = b"musl libc (x86_64)\nVersion %s\n\x001.2.3\0"

PROGRAM = 0o755


def member(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, **settings: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, mode
    for key, value in settings.items():
        setattr(info, key, value)
    return info


def tar(*members: tuple[tarfile.TarInfo, bytes] | tarfile.TarInfo) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for one in members:
            info, content = one if isinstance(one, tuple) else (one, b"")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def chunks(data: bytes, size: int = 7001) -> Iterator[bytes]:
    """Bytes as a daemon sends them: in pieces that fit to nothing."""
    return (data[start : start + size] for start in range(0, len(data), size))


BASE = (
    member("tmp", tarfile.DIRTYPE, 0o1777),
    member("usr", tarfile.DIRTYPE, 0o755),
    member("usr/bin", tarfile.DIRTYPE, 0o755),
    member("bin", tarfile.SYMTYPE, linkname="usr/bin"),
    (member("usr/bin/dash", mode=PROGRAM), b"\x7fELF"),
    (member("usr/bin/bash", mode=PROGRAM), b"\x7fELF"),
    member("usr/bin/sh", tarfile.SYMTYPE, linkname="dash"),
    (member("etc/passwd"), b"root:x:0:0:root:/root:/bin/bash\n"),
)


def image(*members: tuple[tarfile.TarInfo, bytes] | tarfile.TarInfo, config: Config | None = None) -> Facts:
    """Facts of a small image with the infrastructure layer, that has *members* too."""
    config = config or Config()
    config = replace(config, architecture="amd64", labels={names.LABEL_INFRA: "1", **config.labels})
    files = scan(chunks(tar(*BASE, *members)), (*config.entrypoint, *config.command))
    return Facts("solver:1", "sha256:1", config, files, (Layer(7_000_000, "RUN"),), 7_000_000, "amd64")


def said(facts: Facts, name: str, level: str) -> list[str]:
    return [one.text for one in findings(facts) if one.name == name and one.level == level]


def problems(facts: Facts) -> set[str]:
    return {f"{one.level}: {one.name}" for one in findings(facts) if one.level != "note"}


def test_a_plain_image_has_nothing_wrong() -> None:
    assert problems(image()) == set()


def test_an_image_without_the_layer_is_told_so() -> None:
    facts = image()
    facts = replace(facts, config=replace(facts.config, labels={}))
    assert said(facts, "infrastructure", "note") == [
        "the image has no layer of it: its containers get the hosts' own"
    ]
    assert problems(facts) == set()


def test_without_the_layer_shell_and_ssh_are_the_infrastructures() -> None:
    mpi = ((member("usr/lib/libmpi.so.40"), OPEN_MPI), (member("usr/bin/mpirun", mode=PROGRAM), b"\x7fELF"))
    facts = image(*mpi)
    files = Files({path: entry for path, entry in facts.files.entries.items() if path != "/usr/bin/sh"})
    with_layer = replace(facts, files=replace(facts.files, entries=files.entries))
    assert {"error: shell", "error: remote shell"} <= problems(with_layer)
    without = replace(with_layer, config=replace(facts.config, labels={}))
    assert problems(without) == set()
    assert said(without, "shell", "note")
    assert said(without, "remote shell", "note")


def test_links_are_followed_as_in_the_container() -> None:
    files = Files(
        {
            "/bin": Entry("link", 0o777, target="usr/bin"),
            "/usr/bin/mpirun": Entry("link", 0o777, target="/etc/alternatives/mpirun"),
            "/etc/alternatives/mpirun": Entry("link", 0o777, target="../../opt/mpi/./bin/orterun"),
            "/opt/mpi/bin/orterun": Entry("file", 0o755),
            "/opt/mpi/bin/data": Entry("file", 0o644),
            "/a": Entry("link", 0o777, target="/b"),
            "/b": Entry("link", 0o777, target="/a"),
            "/up": Entry("link", 0o777, target="../../../opt/mpi"),
        }
    )
    assert files.resolve("/bin/mpirun") == "/opt/mpi/bin/orterun"
    assert files.which("mpirun", ["/nowhere", "/bin"]) == "/bin/mpirun"
    assert files.which("/up/bin/orterun", []) == "/up/bin/orterun"
    assert files.which("data", ["/opt/mpi/bin"]) is None
    assert files.which("/a", []) is None
    with pytest.raises(HostError, match="too many symbolic links"):
        files.resolve("/a")


@pytest.mark.parametrize("damaged", [b"", b"no tar at all" * 100, tar(*BASE)[:3000]])
def test_what_is_no_whole_archive_is_an_error(damaged: bytes) -> None:
    with pytest.raises(HostError, match="could not be read"):
        scan(chunks(damaged))


@pytest.mark.parametrize(
    ("library", "content", "launcher", "family", "version"),
    [
        ("usr/lib/x86_64-linux-gnu/libmpi.so.40.30.4", OPEN_MPI, "usr/bin/mpirun", "Open MPI", "4.1.4"),
        ("usr/lib64/openmpi/lib/libmpi.so.40", OPEN_MPI, "usr/lib64/openmpi/bin/mpirun", "Open MPI", "4.1.4"),
        ("usr/lib/x86_64-linux-gnu/libmpich.so.12.2.2", MPICH, "usr/bin/mpiexec.hydra", "MPICH", "4.0.2"),
        ("opt/mvapich/lib/libmpi.so.12", MVAPICH, "opt/mvapich/bin/mpiexec.hydra", "MVAPICH", "2.3.7"),
        (
            "opt/intel/mpi/2021.9.0/lib/release/libmpi.so.12",
            INTEL,
            "opt/intel/mpi/2021.9.0/bin/mpirun",
            "Intel MPI",
            "2021.9",
        ),
    ],
)
def test_each_mpi_is_told_by_its_files(
    library: str, content: bytes, launcher: str, family: str, version: str
) -> None:
    facts = image((member(library), content), (member(launcher, mode=PROGRAM), b"\x7fELF"))
    (found,) = find_mpi(facts.files, facts.config)
    assert (found.family, found.version, found.launcher) == (family, version, f"/{launcher}")
    assert found.in_path == launcher.startswith("usr/bin")
    assert bool(said(facts, "mpi launcher", "warning")) != found.in_path


def test_a_mark_across_two_chunks_is_found() -> None:
    """Also with the launcher's script in PATH, not the launcher itself."""
    content = b"\1" * (CHUNK - 9) + OPEN_MPI
    facts = image(
        (member("opt/mpi/lib/libmpi.so.40"), content),
        (member("opt/mpi/bin/mpirun", mode=PROGRAM), b"\x7fELF"),
        (member("usr/bin/mpirun.vendor", mode=PROGRAM), b'#!/bin/sh\nexec /opt/mpi/bin/mpirun "$@"\n'),
    )
    (found,) = find_mpi(facts.files, facts.config)
    assert (found.family, found.version, found.in_path) == ("Open MPI", "4.1.4", True)


def test_launchers_are_not_mixed_up() -> None:
    """MPICH's library alone, where mpirun is Open MPI's by Debian's alternatives."""
    facts = image(
        (member("usr/lib/libmpich.so.12"), MPICH),
        (member("usr/lib/libmpi.so.40"), OPEN_MPI),
        (member("usr/bin/mpirun.openmpi", mode=PROGRAM), b"\x7fELF"),
        member("usr/bin/mpirun", tarfile.SYMTYPE, linkname="mpirun.openmpi"),
    )
    assert {one.family: one.launcher for one in find_mpi(facts.files, facts.config)} == {
        "MPICH": None,
        "Open MPI": "/usr/bin/mpirun.openmpi",
    }
    assert said(facts, "mpi several", "note") == ["mpirun is /usr/bin/mpirun"]
    assert problems(facts) >= {"warning: mpi version", "warning: mpi launcher"}


def test_mpi_without_ssh_reaches_no_other_host() -> None:
    mpi = ((member("usr/lib/libmpi.so.40"), OPEN_MPI), (member("usr/bin/mpirun", mode=PROGRAM), b"\x7fELF"))
    assert said(image(*mpi), "remote shell", "error")
    facts = image(*mpi, (member("usr/bin/ssh", mode=PROGRAM), b"\x7fELF"))
    assert said(facts, "remote shell", "note") == ["mpirun reaches other hosts with /usr/bin/ssh"]


def test_settings_that_win_over_the_job_s_are_named() -> None:
    alike = {"OMPI_MCA_plm_rsh_agent": "ssh", "OMPI_MCA_plm": "rsh", "MPIR_CVAR_CH4_CMA_ENABLE": "0"}
    env = {"HYDRA_LAUNCHER": "slurm", "PRTE_MCA_plm": "slurm", "UCX_NET_DEVICES": "mlx5_0:1", **alike}
    params = (member("etc/openmpi/openmpi-mca-params.conf"), b"# plm = lsf\nplm = slurm\n")
    assert said(image(params, config=Config(env=env)), "mpi settings", "warning") == [
        "ENV HYDRA_LAUNCHER=slurm wins over what jobs set",
        "ENV PRTE_MCA_plm=slurm wins over what jobs set",
        "/etc/openmpi/openmpi-mca-params.conf starts ranks by slurm, not by ssh",
    ]


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("usr/lib/x86_64-linux-gnu/libc.so.6", GLIBC, "glibc 2.36 (/usr/lib/x86_64-linux-gnu/libc.so.6)"),
        ("lib/ld-musl-x86_64.so.1", MUSL, "musl 1.2.3 (/lib/ld-musl-x86_64.so.1)"),
        ("usr/bin/other", b"", "none found: programs are linked statically, or don't start"),
    ],
)
def test_the_c_library_is_named(path: str, content: bytes, says: str) -> None:
    assert said(image((member(path), content)), "libc", "note") == [says]


CAPABILITY = {"SCHILY.xattr.security.capability": "\1\0\0\2\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"}
ENTRY = (
    b"#!/bin/sh\n# chooses the user\nexport SOLVER_HOME=/opt/solver\nchown app /data\nexec gosu app solver\n"
)


@pytest.mark.parametrize(
    ("members", "problem", "text"),
    [
        ([member("opt/solver/bin/helper", mode=0o4755)], "warning: setuid", "/opt/solver/bin/helper"),
        ([member("usr/bin/ping", mode=PROGRAM, pax_headers=CAPABILITY)], "warning: capabilities", "/usr/bin/ping"),
        ([member("opt/scratch", tarfile.DIRTYPE, 0o777)], "warning: writable", "/opt/scratch"),
        ([member("opt/solver", tarfile.DIRTYPE, 0o700)], "warning: any user", "closed to users: /opt/solver"),
        ([member("opt/solver/solve", mode=0o750)], "warning: any user", "closed to users: /opt/solver/solve"),
        ([member("etc/ssh/ssh_host_rsa_key", mode=0o600)], "warning: secrets", "/etc/ssh/ssh_host_rsa_key"),
        ([member("etc/group", tarfile.SYMTYPE, linkname="../data/group")], "error: job files", "link to ../data/group"),
        ([member("etc/passwd", tarfile.DIRTYPE, 0o755)], "error: job files", "/etc/passwd is a directory"),
        ([member("tmp", tarfile.DIRTYPE, 0o755)], "warning: temporary files", "/tmp is a directory with mode 755"),
        ([member("usr/bin/sh", tarfile.SYMTYPE, linkname="nothing")], "error: shell", "there is no /bin/sh"),
    ],
)  # fmt: skip
def test_a_fault_of_the_files_is_found(members: list[tarfile.TarInfo], problem: str, text: str) -> None:
    facts = image(*members)
    assert problems(facts) == {problem}
    level, name = problem.split(": ")
    assert text in said(facts, name, level)[0]


def test_a_directory_in_path_that_users_can_not_enter_is_an_error() -> None:
    directories = (member("var/app", tarfile.DIRTYPE, 0o700), member("var/app/bin", tarfile.DIRTYPE, 0o755))
    link = member("usr/apps", tarfile.SYMTYPE, linkname="../var/app")
    facts = image(*directories, link, config=Config(env={"PATH": "/bin:/usr/apps/bin"}))
    assert said(facts, "any user", "error") == ["/usr/apps/bin in PATH is closed to users"]


@pytest.mark.parametrize(
    ("config", "problem", "text"),
    [
        (Config(volumes=("/data",)), "warning: volumes", "VOLUME /data"),
        (Config(env={"SOLVER": "/root/solver/bin"}), "warning: home", "ENV SOLVER=/root/solver/bin"),
        (Config(env={"PATH": "/home/app/bin:/bin"}), "warning: home", "leads to a home"),
    ],
)
def test_a_fault_of_the_configuration_is_found(config: Config, problem: str, text: str) -> None:
    facts = image(config=config)
    assert problems(facts) == {problem}
    level, name = problem.split(": ")
    assert text in said(facts, name, level)[0]


@pytest.mark.parametrize("called", ["/usr/bin/entry.sh", "entry.sh"])
def test_an_entry_point_that_assumes_root_or_sets_variables_is_read(called: str) -> None:
    script = (member("usr/bin/entry.sh", mode=PROGRAM), ENTRY)
    facts = image(script, config=Config(entrypoint=(called,)))
    assert said(facts, "entry point", "warning") == [
        "/usr/bin/entry.sh assumes root: chown gosu",
        "/usr/bin/entry.sh sets variables that jobs don't get",
    ]


def test_what_has_no_effect_in_a_job_is_a_note() -> None:
    config = Config(user="app", workdir="/opt/work", ports=("80/tcp",), healthcheck=True)
    profile = member("etc/profile.d/modules.sh")
    facts = image(profile, member("usr/bin/su", mode=0o4755), config=config)
    assert problems(facts) == set()
    notes = " ".join(one.text for one in findings(facts))
    for text in (
        "USER is app",
        "WORKDIR /opt/work",
        "EXPOSE 80/tcp",
        "HEALTHCHECK",
        "profile.d/modules.sh",
        "/usr/bin/su",
    ):
        assert text in notes


def test_owners_and_homes_that_the_image_lacks() -> None:
    passwd = b"root:x:0:0:root:/root:/bin/bash\napp:x:1000:1000::/home/app:/bin/sh\nodd line\n"
    facts = image((member("etc/passwd"), passwd), member("opt/a", uid=4711), member("opt/b", uid=1000))
    assert said(facts, "owners", "note") == [
        "files of users that /etc/passwd lacks: 1 of uid 4711",
        "users whose home doesn't exist: app (/home/app)",
    ]


def test_another_architecture_and_a_huge_image() -> None:
    facts = replace(image(), host_architecture="arm64", size=LARGE)
    assert problems(facts) == {"error: architecture", "warning: size"}


def test_package_caches_are_counted() -> None:
    left = (member("var/cache/apt/archives/solver.deb"), bytes(6 << 20))
    assert said(image(left), "package cache", "note") == ["6.3 MB of package files and lists were left"]


def test_the_configuration_is_read_with_all_that_may_be_absent() -> None:
    assert read_config({}) == Config()
    details: Mapping[str, Any] = {
        "Architecture": "amd64",
        "Config": {
            "User": "app", "Env": ["PATH=/bin", "ODD", "A=b=c"], "Entrypoint": ["/e"], "Cmd": None, "Labels": None,
            "Volumes": {"/data": {}}, "ExposedPorts": {"80/tcp": {}}, "Healthcheck": {"Test": ["NONE"]},
            "WorkingDir": "/w",
        },
    }  # fmt: skip
    config = read_config(dict(details))
    assert config.env == {"PATH": "/bin", "A": "b=c"}
    assert (config.volumes, config.ports, config.healthcheck) == (("/data",), ("80/tcp",), False)
    assert config.path == ["/bin"]


def test_exit_status_and_strict() -> None:
    note, warning, error = (Finding("x", level, "text") for level in ("note", "warning", "error"))
    assert report.exit_status([note, warning], strict=False) == report.FINE == 0
    assert report.exit_status([note, warning], strict=True) == report.WRONG == 1
    assert report.exit_status([note, error], strict=False) == report.WRONG
    assert report.exit_status([note], strict=True) == report.FINE


def test_report_takes_the_image_s_texts_for_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither rich's markup nor the terminal's control sequences."""
    facts = image(member("opt/\x1b[2J\n", mode=0o4755), config=Config(user="[red]me[/red]"))
    report.show(facts, findings(facts))
    printed = capsys.readouterr().out
    assert "note     user: USER is [red]me[/red]; a job" in printed
    assert "set-uid or set-gid: /opt/?[2J? ->" in printed
    assert "7.0 MB  RUN" in printed
    document = json.loads(report.as_json(facts, findings(facts)))
    assert document["layers"] == [{"size": 7_000_000, "created_by": "RUN"}]
    assert {"level", "name", "text", "remedy"} == set(document["findings"][0])
