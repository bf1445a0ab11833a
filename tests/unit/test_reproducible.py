# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An archive of ``docker save`` without its times: what goes, and what must stay."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from reproducible import rewrite

ROOT = Path(__file__).resolve().parents[2]
EPOCH = 1_000_000_000
CAPABILITY = "\1\0\0\2\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"


def archive(path: Path, build: int, images: int = 1) -> Path:
    """Write an image as the build number *build* would have made it, a second later than the one before."""
    now = EPOCH + build
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, mtime in (("old", 900_000_000.0), ("new", now + 0.5)):
            info = tarfile.TarInfo(name)
            info.mtime, info.mode, info.uid, info.size = mtime, 0o4755, 7, 4
            info.pax_headers = {"SCHILY.xattr.security.capability": CAPABILITY, "ctime": str(now)}
            tar.addfile(info, io.BytesIO(b"text"))
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "created": f"2001-09-09T01:46:{40 + build}Z",
        "container": str(build),
        "container_config": {"Hostname": f"host{build}"},
        "config": {"Env": ["PATH=/bin"], "Image": f"sha256:{build}", "Hostname": ""},
        "history": [{"created": f"2001-09-09T01:46:{40 + build}Z", "created_by": "RUN"}] * 2,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"] * 2},
    }
    manifest = [
        {"Config": "c.json", "RepoTags": ["solver:1"], "Layers": ["a/layer.tar", "b/layer.tar"]}
    ] * images
    with tarfile.open(path, "w") as tar:
        texts = {"c.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode()}
        for name, content in {"a/layer.tar": layer.getvalue(), **texts}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        # The same layer once more is a link, as docker saves it.
        link = tarfile.TarInfo("b/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../a/layer.tar"
        tar.addfile(link)
    return path


def test_two_builds_become_the_same_archive(tmp_path: Path) -> None:
    ids = {rewrite(archive(tmp_path / f"{n}.tar", n), tmp_path / f"{n}.out", EPOCH) for n in (1, 2)}
    assert len(ids) == 1
    assert (tmp_path / "1.tar").read_bytes() != (tmp_path / "2.tar").read_bytes()
    assert (tmp_path / "1.out").read_bytes() == (tmp_path / "2.out").read_bytes()


def test_all_but_the_times_stays(tmp_path: Path) -> None:
    identity = rewrite(archive(tmp_path / "in.tar", 1), tmp_path / "out.tar", EPOCH)
    with tarfile.open(tmp_path / "out.tar") as tar:
        (entry,) = json.load(tar.extractfile("manifest.json") or io.BytesIO())
        text = (tar.extractfile(entry["Config"]) or io.BytesIO()).read()
        layers = [(tar.extractfile(name) or io.BytesIO()).read() for name in entry["Layers"]]
    assert entry["RepoTags"] == ["solver:1"]
    assert identity == f"sha256:{hashlib.sha256(text).hexdigest()}"
    config = json.loads(text)
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    assert config["config"] == {"Env": ["PATH=/bin"], "Image": "", "Hostname": ""}
    assert config["created"] == "2001-09-09T01:46:40Z"
    assert [step["created_by"] for step in config["history"]] == ["RUN", "RUN"]
    with tarfile.open(fileobj=io.BytesIO(layers[0])) as layer:
        files = {member.name: member for member in layer}
        assert [(name, member.mtime) for name, member in files.items()] == [
            ("old", 900_000_000),
            ("new", EPOCH),
        ]
        assert all((member.mode, member.uid) == (0o4755, 7) for member in files.values())
        assert all(
            member.pax_headers == {"SCHILY.xattr.security.capability": CAPABILITY}
            for member in files.values()
        )


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 2 images"):
        rewrite(archive(tmp_path / "two.tar", 1, images=2), tmp_path / "out.tar")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    program = [
        sys.executable,
        str(ROOT / "images/reproducible.py"),
        str(tmp_path / "empty.tar"),
        str(tmp_path / "o"),
    ]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "it has no manifest.json" in done.stderr
