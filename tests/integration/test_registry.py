# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's registry as the role configures it, and a host's dockerd that is bound to it.

Both run on a private host; the registry has an address that is not the loopback, for which proxies don't count.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from cluster_fixtures import SitePki
from host_fixtures import IMAGE, ROOT, Host, private_host

pytestmark = pytest.mark.integration

ROLE = ROOT / "roles/registry"
ADDRESS, READ, WRITE = "10.99.0.1", 5000, 5001
SITE = f"{ADDRESS}:{READ}"
PROXY = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": SITE}
PASSWORDS = {"reader": "r" * 32, "writer": "w" * 32}
PULL = "import sys; from dockerjob_core.images import pull; sys.exit(pull(*sys.argv[1:]))"
PRUNE = "import sys; from dockerjob_core.images import prune; sys.exit(prune(*sys.argv[1:]))"
CHOOSE = """
import json, sys
from dockerjob.broker.policy import choose_application
from dockerjob.config import Config
from dockerjob_core.errors import DockerjobError
try:
    print(choose_application(Config.model_validate(json.loads(sys.argv[1])), sys.argv[2]).image)
except DockerjobError as error:
    print(error.exit_status, error)
"""
LIST = """
import json, sys
from dockerjob.broker.catalogue import catalogue
from dockerjob.config import Config
config = Config.model_validate(json.loads(sys.argv[1]))
print(json.dumps([image.as_dict() for image in catalogue(config, lambda _: {})]))
"""
CURRENT = """
import json, sys
from dockerjob.broker.distribution import look_at_registry
from dockerjob.config import Config
config = Config.model_validate(json.loads(sys.argv[1]))
current = look_at_registry(config, config.registry)
print(json.dumps([dict(current.catalogue), sorted(current.needed), sorted(current.superseded)]))
"""
LACKS = "import sys; from dockerjob_core.images import lacks; print(lacks(sys.argv[1]))"


@dataclass
class Site:
    """A host with its registry, and the files of both."""

    host: Host
    directory: Path

    @property
    def storage(self) -> Path:
        return self.directory / "storage/docker/registry/v2"

    def program(self, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the host's side of the project, as root there who is logged in."""
        environment = {
            "HOME": str(self.directory),
            "PYTHONPATH": str(ROOT / ".build/python"),
            "PATH": "/usr/bin:/bin",
        }
        return self.host.run(sys.executable, "-c", text, *arguments, check=False, env=environment)

    def skopeo(self, *words: str, account: str = "writer", check: bool = True) -> str:
        """Run skopeo in the host's network, with the login of an account."""
        login = self.directory / f"{account}.json"
        certificates = self.directory / "ca"
        extra = [f"--authfile={login}"]
        if words[0] == "copy":
            extra += [f"--src-cert-dir={certificates}", f"--dest-cert-dir={certificates}"]
        else:
            extra += [f"--cert-dir={certificates}"]
        done = self.host.run("skopeo", "--insecure-policy", words[0], *extra, *words[1:], check=False)
        if check:
            assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def curl(self, path: str, *options: str, port: int = READ, account: str = "") -> str:
        """Return the status that the API gives."""
        user = ["--user", f"{account}:{PASSWORDS[account]}"] if account else []
        argv = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]
        url = f"https://{ADDRESS}:{port}/v2/{path}"
        return self.host.run(
            *argv, "--cacert", str(self.directory / "ca/ca.crt"), *user, *options, url
        ).stdout.strip()

    def garbage_collect(self) -> str:
        done = self.host.run("docker-registry", "garbage-collect", str(self.directory / "writer.yml"))
        return done.stdout

    def ask(self, program: str, name: str, **registry: Any) -> str:
        """Run the broker's side in the host's network, with these settings of the registry; return what it prints."""
        settings = {
            "address": SITE,
            "ca": str(self.directory / "ca/ca.crt"),
            "password_file": str(self.directory / "reader.password"),
            **registry,
        }
        config = {
            "hosts": {"node1": {"address": "a"}},
            "ansible": {"private_key": "/k", "known_hosts": "/h"},
            "etcd": {"ca": "/c", "cert": "/c", "key": "/k", "auth_cert": "/a", "auth_key": "/a"},
            "job_ca": {"cert": "/c", "key": "/k"},
            "registry": settings,
            "applications": {"small:1": {"image": "small:1"}, "ghost:1": {"image": "ghost:1"}},
            "mounts": [],
            "batch": {},
        }
        return self.host.run(sys.executable, "-c", program, json.dumps(config), name).stdout.strip()


def render(directory: Path) -> None:
    """Write the configuration of both instances from the role's template."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)  # noqa: S701  # what it makes is YAML, not HTML
    environment.filters["to_json"] = json.dumps
    template = environment.from_string((ROLE / "templates/registry.yml.j2").read_text())
    variables = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    for name, port in (("reader", READ), ("writer", WRITE)):
        text = template.render(
            ansible_managed="test",
            registry_storage=str(directory / "storage"),
            registry_config_directory=str(directory),
            instance={"name": name, "port": port},
        )
        (directory / f"{name}.yml").write_text(text)
        crypt = [*variables["_registry_crypt"], f"$2b$04${'a' * 21}u"]
        hashed = subprocess.run(
            crypt, input=PASSWORDS[name], capture_output=True, text=True, check=True
        ).stdout
        (directory / f"{name}.htpasswd").write_text(f"{name}:{hashed}\n")
        (directory / f"{name}.password").write_text(PASSWORDS[name] + "\n")


def login(**accounts: str) -> str:
    """What Docker and skopeo read: the accounts for the reader's and the writer's port."""
    ports = {"reads": READ, "writes": WRITE}
    tokens = {
        f"{ADDRESS}:{ports[port]}": base64.b64encode(f"{account}:{PASSWORDS[account]}".encode()).decode()
        for port, account in accounts.items()
    }
    return json.dumps({"auths": {address: {"auth": token} for address, token in tokens.items()}})


def certify(directory: Path) -> None:
    """Make the authority and the server's certificate as the role pki does."""
    pki = SitePki(directory / "pki")
    pki.directory.mkdir()
    for authority in ("ca", "peer_ca"):
        pki.authority(authority)
    pki.member("registry", ADDRESS)
    (directory / "ca").mkdir()
    (directory / "ca/ca.crt").write_bytes(pki.path("authority-ca").read_bytes())
    (directory / "server.pem").write_bytes(pki.path("member-registry").read_bytes())
    (directory / "server.key").write_bytes(pki.path("member-registry", ".key").read_bytes())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("registry")
    certify(directory)
    render(directory)
    variables = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    for made in variables["_registry_directories"]:
        (directory / made.replace("{{ registry_storage }}", "storage")).mkdir()
    both = (SITE, f"{ADDRESS}:{WRITE}")
    reader = login(reads="reader", writes="reader")
    (directory / "reader.json").write_text(reader)
    (directory / "writer.json").write_text(login(reads="reader", writes="writer"))
    (directory / ".docker").mkdir()
    (directory / ".docker/config.json").write_text(reader)
    with private_host(directory / "state", PROXY) as host:
        for address in (ADDRESS, "10.99.0.2"):
            host.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        # The authority is trusted for both, so that nothing but the way there keeps dockerd from the second.
        for address in both:
            host.run("mkdir", "-p", f"/etc/docker/certs.d/{address}")
            host.run("cp", str(directory / "ca/ca.crt"), f"/etc/docker/certs.d/{address}/ca.crt")
        found = Site(host, directory)
        for name in PASSWORDS:
            log = (directory / f"{name}.log").open("wb")
            argv = host.inside("docker-registry", "serve", str(directory / f"{name}.yml"))
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            log.close()
        for port in (READ, WRITE):
            await_answer(found, port)
        yield found


def await_answer(site: Site, port: int) -> None:
    for _ in range(300):
        if site.host.run("nc", "-z", ADDRESS, str(port), check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError((site.directory / "reader.log").read_text())


def archive(site: Site, name: str, change: str) -> tuple[Path, str]:
    """Make an image that differs from others by *change*, and save it; return the archive and the image's id."""
    made = site.host.docker("create", IMAGE, "true")
    identity = site.host.docker("commit", "--change", f"LABEL change={change}", made, name)
    site.host.docker("rm", made)
    path = site.directory / f"{change}.tar"
    site.host.docker("save", "--output", str(path), name)
    site.host.docker("rmi", name)
    return path, identity


def small(site: Site, change: str = "first") -> str:
    """Push an image as small:1; return its id."""
    path, identity = archive(site, "small:1", change)
    site.skopeo("copy", f"docker-archive:{path}", f"docker://{ADDRESS}:{WRITE}/small:1")
    return identity


def choose(site: Site, name: str, **registry: Any) -> str:
    """Return the image that a job with this APPLICATION runs in, or the error and its exit status."""
    return site.ask(CHOOSE, name, **registry)


def test_a_job_s_image_is_pinned_to_what_the_tag_means_now(site: Site) -> None:
    small(site)
    digest = site.skopeo("inspect", "--format={{.Digest}}", f"docker://{SITE}/small:1").strip()
    assert choose(site, "small:1") == f"{SITE}/small@{digest}"
    small(site, "second")
    second = choose(site, "small:1")
    assert second.startswith(f"{SITE}/small@sha256:")
    assert digest not in second


def test_what_is_not_listed_is_offered_by_pattern_only(site: Site) -> None:
    path, _ = archive(site, "team/tool:2", "tool")
    site.skopeo("copy", f"docker-archive:{path}", f"docker://{ADDRESS}:{WRITE}/team/tool:2")
    assert choose(site, "team/tool:2").startswith("201 APPLICATION=team/tool:2 is not known here")
    assert choose(site, "team/tool:2", offer=["team/*"]).startswith(f"{SITE}/team/tool@sha256:")
    assert "the nearest of 3: team/tool:2, " in choose(site, "team/tol:2", offer=["team/*"])


def test_a_catalogue_and_a_registry_that_disagree_are_the_administrator_s(site: Site) -> None:
    assert choose(site, "ghost:1").startswith(
        f"203 ghost:1, the image of ghost:1, is not in the registry {SITE}"
    )


def test_a_registry_that_refuses_or_does_not_answer_is_214(site: Site) -> None:
    assert choose(site, "small:1", username="nobody").startswith(f"214 registry {SITE} refused")
    assert choose(site, "small:1", address=f"{ADDRESS}:1").startswith(
        f"214 registry {ADDRESS}:1 is out of reach"
    )
    # Its certificate is not for this name, though the authority is the right one.
    assert "certificate" in choose(site, "small:1", address=f"10.99.0.2:{READ}")


def test_the_list_has_sizes_and_digests(site: Site) -> None:
    small(site)
    listed = {image["application"]: image for image in json.loads(site.ask(LIST, "", offer=["*"]))}
    assert listed["small:1"]["image"] == choose(site, "small:1")
    assert listed["small:1"]["size"] > 100_000
    assert (listed["ghost:1"]["image"], listed["ghost:1"]["size"]) == ("", None)


def test_an_image_for_several_platforms_has_the_size_of_these_hosts_own(site: Site) -> None:
    small(site)
    kind = "application/vnd.docker.distribution.manifest"
    raw = site.skopeo("inspect", "--raw", f"docker://{SITE}/small:1")
    entry = {
        "mediaType": f"{kind}.v2+json",
        "size": len(raw),
        "digest": choose(site, "small:1").partition("@")[2],
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    index = {"schemaVersion": 2, "mediaType": f"{kind}.list.v2+json", "manifests": [entry]}
    options = (
        "--request",
        "PUT",
        "--header",
        f"Content-Type: {kind}.list.v2+json",
        "--data",
        json.dumps(index),
    )
    assert site.curl("small/manifests/several", *options, account="writer", port=WRITE) == "201"
    listed = {image["application"]: image for image in json.loads(site.ask(LIST, "", offer=["*"]))}
    assert listed["small:several"]["size"] == listed["small:1"]["size"] > 100_000


def test_the_reader_reads_and_nobody_else_does(site: Site) -> None:
    small(site)
    assert site.curl("small/tags/list") == "401"
    assert site.curl("small/tags/list", account="reader") == "200"
    assert site.curl("small/tags/list", account="reader", port=WRITE) == "401"


def test_the_reader_may_not_push_or_delete(site: Site) -> None:
    small(site)
    digest = choose(site, "small:1").partition("@")[2]
    for options in (("--request", "POST", "--data", ""), ("--request", "PUT", "--data", "{}")):
        where = "small/blobs/uploads/" if "POST" in options else "small/manifests/1"
        assert site.curl(where, *options, account="reader") == "405"
        assert site.curl(where, *options, account="reader", port=WRITE) == "401"
    assert site.curl(f"small/manifests/{digest}", "--request", "DELETE", account="reader") == "405"
    path = site.directory / "first.tar"
    said = site.skopeo(
        "copy", f"docker-archive:{path}", f"docker://{SITE}/small:1", account="reader", check=False
    )
    assert "denied" in said or "unsupported" in said or "405" in said, said
    # Nor the writer at the reader's port.
    assert site.curl("small/tags/list", account="writer") == "401"


def test_garbage_goes_and_a_push_that_has_only_begun_does_no_harm(site: Site) -> None:
    assert (
        site.curl("half/blobs/uploads/", "--request", "POST", "--data", "", account="writer", port=WRITE)
        == "202"
    )
    small(site, "garbage")
    garbage = choose(site, "small:1").partition("@")[2]
    small(site, "kept")
    assert (
        site.curl(f"small/manifests/{garbage}", "--request", "DELETE", account="writer", port=WRITE) == "202"
    )
    before = len(list((site.storage / "blobs").rglob("data")))
    site.garbage_collect()
    assert len(list((site.storage / "blobs").rglob("data"))) < before
    done = site.program(PULL, choose(site, "small:1"), "60")
    assert done.returncode == 0, done.stdout
    site.host.docker("rmi", choose(site, "small:1"))


def test_garbage_of_a_new_storage_is_none(site: Site, tmp_path: Path) -> None:
    config = yaml.safe_load((site.directory / "writer.yml").read_text())
    config["storage"]["filesystem"]["rootdirectory"] = str(tmp_path)
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    collect = ("docker-registry", "garbage-collect", str(tmp_path / "config.yml"))
    # What the role's directories are for.
    assert site.host.run(*collect, check=False).returncode != 0
    for name in ("blobs", "repositories"):
        (tmp_path / "docker/registry/v2" / name).mkdir(parents=True)
    site.host.run(*collect)


def test_a_host_pulls_what_it_lacks_and_nothing_twice(site: Site) -> None:
    identity = small(site)
    image = choose(site, "small:1")
    assert site.program(LACKS, image).stdout == "True\n"
    done = site.program(PULL, image, "60")
    assert (done.returncode, "percent" in done.stdout) == (0, True), done.stdout
    assert site.program(LACKS, image).stdout == "False\n"
    assert site.host.docker("inspect", "--format", "{{.Id}}", image) == identity
    # Without the registry's storage, so nothing can have been transferred.
    (site.storage / "blobs").rename(site.storage / "away")
    try:
        assert site.program(LACKS, image).stdout == "False\n"
    finally:
        (site.storage / "away").rename(site.storage / "blobs")
    site.host.docker("rmi", image)


def test_a_host_reaches_no_other_registry(site: Site) -> None:
    """The writer's port is one: same authority, valid certificate, same images, and root is logged in."""
    small(site)
    other = choose(site, "small:1").replace(SITE, f"{ADDRESS}:{WRITE}")
    # Who is not bound reaches it.
    assert site.skopeo("inspect", "--format={{.Digest}}", f"docker://{other}").strip() in other
    for image in (other, "docker.io/library/busybox:latest"):
        done = site.program(PULL, image, "60")
        assert done.returncode == 1
        assert "127.0.0.1:9: connect: connection refused" in done.stdout
    assert site.program(LACKS, other).stdout == "True\n"


def test_an_image_that_is_gone_is_said(site: Site) -> None:
    done = site.program(PULL, f"{SITE}/small@sha256:{'0' * 64}", "60")
    assert done.returncode == 1
    assert "not found" in done.stdout or "unknown" in done.stdout


def test_pruning_removes_what_no_container_uses(site: Site) -> None:
    pulled = []
    for change in ("old", "used", "wanted"):
        small(site, change)
        pulled.append(choose(site, "small:1"))
        assert site.program(PULL, pulled[-1], "60").returncode == 0
    old, used, wanted = pulled
    container = site.host.docker("create", used, "true")
    try:
        done = site.program(PRUNE, used, old, f"{SITE}/small@sha256:{'0' * 64}")
        assert (done.returncode, done.stdout) == (0, json.dumps({"removed": old}) + "\n")
        assert site.program(LACKS, wanted).stdout == site.program(LACKS, used).stdout == "False\n"
    finally:
        site.host.docker("rm", container)
        site.host.docker("rmi", used, wanted)


def test_what_is_current_is_kept_on_hosts_and_also_what_only_may_be_asked_for(site: Site) -> None:
    small(site)
    path, _ = archive(site, "team/kept:2", "kept")
    site.skopeo("copy", f"docker-archive:{path}", f"docker://{ADDRESS}:{WRITE}/team/kept:2")
    catalogue, needed, superseded = json.loads(site.ask(CURRENT, "", offer=["team/k*"]))
    assert catalogue == {"small:1": choose(site, "small:1")}
    assert set(needed) == {catalogue["small:1"], choose(site, "team/kept:2", offer=["team/*"])}
    assert {f"{SITE}/small", f"{SITE}/team/kept"} <= set(superseded)
    assert f"{SITE}/ghost" not in superseded


def test_an_archive_of_an_image_restores_it(site: Site, tmp_path: Path) -> None:
    identity = small(site)
    saved = tmp_path / "small.tar"
    site.skopeo("copy", f"docker://{SITE}/small:1", f"docker-archive:{saved}:small:1")
    site.skopeo("copy", f"docker-archive:{saved}", f"docker://{ADDRESS}:{WRITE}/restored:1")
    raw = json.loads(site.skopeo("inspect", "--raw", f"docker://{SITE}/restored:1"))
    assert raw["config"]["digest"] == identity
