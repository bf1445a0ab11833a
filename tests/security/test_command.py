# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""COMMAND reaches the user's shell in the container byte for byte, or is refused."""

from __future__ import annotations

import hashlib

import pytest
from dockerjob.request import MAX_COMMAND
from dockerjob_lab.client import Cluster

from .attack import NUMBER, ODD, ONE_HOST, broker, check_refused, encoded, request, script

pytestmark = pytest.mark.lab

PROOF = b"sha256sum </proc/$$/cmdline; test ! -e /scratch/alice/pwned; exit\n"
"""A first line that tells what the shell was given, and keeps it from reading on."""

TEXTS = {
    "a template": b"{{ lookup('pipe','touch /scratch/alice/pwned') }} {% raw %} {# #} {{ 7*7 }}",
    "a shell": b"$(touch /scratch/alice/pwned) `touch /scratch/alice/pwned`; touch /scratch/alice/pwned & | > <",
    "quotes": b"' \" ''' \"\"\" \\' \\\" '\"'\"' $'\\x41' \\",
    "newlines": b"\n\n\r\n\t\x0b\x0c\n  \n---\n- hosts: all\n...\n",
    "unicode": "é 日本 \u202e \u2028 \x85 \ufeff 😀 ﷽ a\u0301".encode(),
    "bytes that are no text": bytes(range(1, 256)),
    "options": b"--privileged -v /:/host -u 0 -oProxyCommand=id",
    "all at once": ODD.encode(),
    "100 kB": b"x" * 100_000,
}


def as_the_shell_gets_it(command: bytes) -> str:
    return hashlib.sha256(b"/bin/bash\0-c\0" + command + b"\0").hexdigest()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_command_arrives_byte_for_byte_through_the_wrapper(cluster: Cluster, text: bytes) -> None:
    command = PROOF + text.rstrip(b"\n") + b"#"
    done = cluster.submit(script(command), hosts="node1")
    assert (done.out.split()[:1], done.status) == ([as_the_shell_gets_it(command)], 0), done.err
    assert not cluster.path("node1", "/scratch/alice/pwned").exists()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("size", [len(PROOF) + 1, MAX_COMMAND])
def test_a_command_arrives_byte_for_byte_through_the_broker(cluster: Cluster, size: int) -> None:
    """With a newline at its end, which no variable of a shell's would keep, and at the longest."""
    cluster.record_job(NUMBER, "alice", ONE_HOST)
    command = PROOF + b"\n" * (size - len(PROOF))
    done = broker(cluster, request(ONE_HOST, command=encoded(command)))
    assert (done.out.split()[:1], done.status) == ([as_the_shell_gets_it(command)], 0), done.err


@pytest.mark.usefixtures("nothing_happens", "honest_job")
@pytest.mark.parametrize(
    "command",
    [b"a\0b", b"\0", b"a" * (MAX_COMMAND + 1), b"a" * 500_000, b"", b" \n\t"],
    ids=lambda text: repr(text[:5]),
)
def test_what_no_shell_could_be_given_is_refused(cluster: Cluster, command: bytes) -> None:
    check_refused(cluster, broker(cluster, request(command=encoded(command))), 201, "COMMAND")


@pytest.mark.usefixtures("nothing_left")
def test_a_variable_arrives_byte_for_byte(cluster: Cluster) -> None:
    """A user's variables go the way of COMMAND, and never stand in a docker option."""
    value = "{{ 7*7 }}$(id)'\"\n-e X=1 \\ é日本"
    cluster.record_job(NUMBER, "alice", ONE_HOST)
    command = encoded('printf %s "$ODD" | base64 -w0')
    done = broker(cluster, request(ONE_HOST, command=command, environment={"ODD": value}))
    assert (done.out, done.status) == (encoded(value), 0), done
