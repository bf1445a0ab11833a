# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collect the infrastructure of this image into one directory that runs in any other: relocate.py DIRECTORY ARCHIVE.

Runs in an image with the infrastructure layer, as root.  Programs get the loader and the
libraries of the directory by their full paths, so that neither the libraries of the image they
run in nor its LD_LIBRARY_PATH is looked at: a DT_RPATH comes before it, see ld.so(8).
"""

from __future__ import annotations

import compileall
import py_compile
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from dockerjob_core.names import INFRA_TARGET, SHELLS

ROOT = Path(INFRA_TARGET)
"""Where the directory is mounted in a container, and where the layer is in this image."""

VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
STDLIB = Path("/usr/lib") / VERSION
PROGRAMS = {
    f"bin/{VERSION}": Path("/usr/bin") / VERSION,
    "bin/ssh-keygen": Path("/usr/bin/ssh-keygen"),
    "libexec/ssh": Path("/usr/bin/ssh"),
    "sbin/sshd": Path("/usr/sbin/sshd"),
}
STATIC = {"bin/sh": Path("/bin/busybox")}
"""What runs in COMMAND's environment, too: a static program preloads nothing, whatever LD_PRELOAD says."""

UNUSED = ("__pycache__", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "ensurepip", "config-*", "*.a")

SSH = """#!/opt/dockerjob/bin/sh
# Called by COMMAND's programs, whose loader's variables are for the image's libraries.
unset LD_PRELOAD LD_AUDIT LD_LIBRARY_PATH
exec /opt/dockerjob/libexec/ssh "$@"
"""

SHELL = """#!/opt/dockerjob/bin/sh
# The login shell of a job's user: the agent has told sshd by SHELL which one of the image it is.
exec "$SHELL" "$@"
"""

LOADER_FILES = {
    # Same lengths: these are strings in a program. What the image preloads, was not made for our libraries.
    b"/etc/ld.so.preload\0": b"/opt/dockerjob/pre\0",
    b"/etc/ld.so.cache\0": b"/opt/dockerjob/c\0",
}


def run(*argv: str | Path) -> str:
    """Run a program that must succeed and return its output."""
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def libraries(path: Path) -> dict[str, Path]:
    """Return what the loader finds for *path*, by the names it is asked for; the loader itself too."""
    done = subprocess.run(["ldd", path], check=False, capture_output=True, text=True)
    if "not found" in done.stdout:
        raise SystemExit(f"{path} lacks a library: {done.stdout}")
    found = re.findall(r"^\s*(?:(\S+) => )?(/\S+) \(0x", done.stdout, re.MULTILINE)
    return {Path(name or file).name: Path(file) for name, file in found}


def copy_files(target: Path) -> None:
    """Copy programs, Python's library and the agent's packages."""
    for name, source in {**PROGRAMS, **STATIC}.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target / name)
    library = target / "lib" / VERSION
    shutil.copytree(STDLIB, library, symlinks=True, ignore=shutil.ignore_patterns(*UNUSED))
    shutil.copytree(
        ROOT / "lib" / VERSION / "site-packages",
        library / "site-packages",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    # Debian's Python looks for this name where it is in no virtual environment.
    shutil.rmtree(library / "dist-packages", ignore_errors=True)
    (library / "dist-packages").symlink_to("site-packages")
    for link in ("python", "python3"):
        (target / "bin" / link).symlink_to(VERSION)
    shutil.copy(ROOT / "bin/dockerjob-agent", target / "bin/dockerjob-agent")
    (target / "shells").mkdir()
    for name, text in {"bin/ssh": SSH, **{f"shells/{name}": SHELL for name in SHELLS}}.items():
        (target / name).write_text(text)
        (target / name).chmod(0o755)


def relocate(target: Path) -> None:
    """Bring the libraries, and have programs use these alone."""
    needed: dict[str, Path] = {"libgcc_s.so.1": next(Path("/lib").glob("*-linux-gnu/libgcc_s.so.1"))}
    for path in (*(target / name for name in PROGRAMS), *target.rglob("*.so")):
        needed.update(libraries(path))
    for name, source in needed.items():
        shutil.copy(source, target / "lib" / name)
    [loader] = (name for name in needed if name.startswith("ld-linux"))
    patch_loader(target / "lib" / loader)
    for name in PROGRAMS:
        run("patchelf", "--set-interpreter", ROOT / "lib" / loader, target / name)
        run("patchelf", "--force-rpath", "--set-rpath", ROOT / "lib", target / name)
    for path in (*(target / "lib").glob("*.so*"), *(target / "lib").rglob("*.so")):
        # An own RUNPATH would make the loader forget the program's RPATH.
        if run("patchelf", "--print-rpath", path).strip():
            run("patchelf", "--remove-rpath", path)


def patch_loader(loader: Path) -> None:
    """Have the loader read no file of the image's."""
    content = loader.read_bytes()
    for old, new in LOADER_FILES.items():
        if content.count(old) != 1 or len(old) != len(new):
            raise SystemExit(f"{loader} does not have {old!r} just once")
        content = content.replace(old, new)
    loader.write_bytes(content)


def pack(target: Path, archive: Path) -> None:
    """Compile, and write the archive, all of it root's and for everyone to read."""
    compileall.compile_dir(
        str(target / "lib" / VERSION),
        quiet=2,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        stripdir=str(target),
        prependdir=str(ROOT),
    )

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = "root"
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
        for path in sorted(target.iterdir()):
            tar.add(path, path.name, filter=plain)


def main() -> None:
    """Do it all."""
    target, archive = Path(sys.argv[1]), Path(sys.argv[2])
    copy_files(target)
    relocate(target)
    pack(target, archive)


if __name__ == "__main__":
    main()
