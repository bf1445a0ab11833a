#!/usr/bin/python
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: read keys of etcd, or wait for one."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_key_info
short_description: Read keys of etcd, or wait for one
version_added: "0.1.0"
author:
  - the hpc.dockerjob authors (@hpc-dockerjob)
description:
  - Reads one key or all keys under a prefix.
  - With O(wait_for) it waits until the key is as wanted. It watches the key and does not poll it.
extends_documentation_fragment:
  - hpc.dockerjob.etcd
attributes:
  check_mode:
    support: full
    details:
      - It never changes anything, and waits in check mode too.
  diff_mode:
    support: N/A
    details:
      - It never changes anything.
  idempotent:
    support: full
    details:
      - It never changes anything.
options:
  key:
    description:
      - The key to read.
    type: str
  prefix:
    description:
      - Read all keys that begin with this, at one revision.
    type: str
  wait_for:
    description:
      - What to wait for before reading O(key).
      - With V(present) until there is such a key, with V(absent) until there is none.
      - With V(equal) until its value is O(wait_value), with V(different) until it is not, or the key is gone.
    type: str
    choices: [present, absent, equal, different]
  wait_value:
    description:
      - The value that V(equal) and V(different) of O(wait_for) compare with.
    type: str
  wait_timeout:
    description:
      - Seconds to wait; then the module fails.
    type: float
    default: 60.0
seealso:
  - module: hpc.dockerjob.etcd_key
"""

EXAMPLES = r"""
- name: Wait for the job's end
  hpc.dockerjob.etcd_key_info:
    key: /748/FINISH
    wait_for: different
    wait_value: "FALSE"
    wait_timeout: 300
    ca_cert: /etc/dockerjob/pki/ca.pem
    client_cert: /etc/dockerjob/pki/broker.pem
    client_key: /etc/dockerjob/pki/broker.key
  register: finish

- name: Read the whole job tree
  hpc.dockerjob.etcd_key_info:
    prefix: /748/
    ca_cert: /etc/dockerjob/pki/ca.pem
    client_cert: /etc/dockerjob/pki/broker.pem
    client_key: /etc/dockerjob/pki/broker.key
  register: tree
"""

RETURN = r"""
entries:
  description: The keys that were found, in order.
  type: list
  elements: dict
  returned: success
  contains:
    key:
      description: The key.
      type: str
      sample: /748/FINISH
    value:
      description: Its value as text; bytes that are no UTF-8 appear as C(\\x00).
      type: str
      sample: "FALSE"
    lease:
      description: Id of its lease, 0 if it has none.
      type: int
      sample: 7587862094525664520
    mod_revision:
      description: Revision of its last change.
      type: int
      sample: 42
    create_revision:
      description: Revision that created it.
      type: int
      sample: 40
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ..module_utils.errors import KvsError
from ..module_utils.etcd_options import Result, run
from ..module_utils.kvs import KeyValue, Kvs, RefusedError, Watch

ARGUMENTS = {
    "key": {"type": "str", "no_log": False},
    "prefix": {"type": "str"},
    "wait_for": {"type": "str", "choices": ["present", "absent", "equal", "different"]},
    "wait_value": {"type": "str"},
    "wait_timeout": {"type": "float", "default": 60.0},
}

REREAD = 30.0
"""Seconds after which the key is read again: etcd 3.4 can lose events of a watch in rare cases."""

Condition = Callable[[bytes | None], bool]


def condition(wait_for: str, wait_value: str | None) -> Condition:
    """Return what says whether a value (None: no such key) is what is waited for."""
    wanted = (wait_value or "").encode()
    conditions: dict[str, Condition] = {
        "present": lambda value: value is not None,
        "absent": lambda value: value is None,
        "equal": lambda value: value == wanted,
        "different": lambda value: value != wanted,
    }
    return conditions[wait_for]


def wait(kvs: Kvs, key: str, reached: Condition, timeout: float) -> KeyValue | None:
    """Wait until the value of *key* is as wanted; return the key as it is read then.

    Raises:
        KvsError: It is not after *timeout* seconds, or etcd failed.
    """
    end = time.monotonic() + timeout
    while True:
        snapshot = kvs.get_prefix(key)
        item = next((item for item in snapshot.items if item.key == key), None)
        if reached(item.value if item else None):
            return item
        left = end - time.monotonic()
        if left <= 0:
            last = f"its value is {item.value[:200]!r}" if item else "there is no such key"
            raise KvsError(f"{key} did not become what was waited for in {timeout:g} s: {last}")
        try:
            watch = kvs.watch_prefix(key, snapshot.revision + 1)
            _follow(watch, key, reached, min(left, REREAD))
            watch.cancel()
        except RefusedError:
            raise
        except KvsError:
            continue  # the connection was lost: reading again says whether etcd is


def _follow(watch: Watch, key: str, reached: Condition, timeout: float) -> None:
    """Take events until one says that the value is as wanted, or *timeout* seconds are over."""
    end = time.monotonic() + timeout
    while event := watch.next(max(0.0, end - time.monotonic())):
        if event.key == key and reached(None if event.type == "delete" else event.value):
            return


def shown(item: KeyValue) -> dict[str, Any]:
    """Return the key as the module returns it."""
    return {**asdict(item), "value": item.value.decode(errors="backslashreplace")}


def ensure(options: Mapping[str, Any], kvs: Kvs, check_mode: bool) -> Result:
    """Read what is asked for; there is nothing to hold back in check mode."""
    if options["prefix"] is not None:
        return Result(values={"entries": [shown(item) for item in kvs.get_prefix(options["prefix"]).items]})
    if options["wait_for"]:
        reached = condition(options["wait_for"], options["wait_value"])
        item = wait(kvs, options["key"], reached, options["wait_timeout"])
    else:
        item = kvs.get(options["key"])
    return Result(values={"entries": [shown(item)] if item else []})


def main() -> None:
    """Run the module."""
    run(
        ensure,
        ARGUMENTS,
        required_one_of=[("key", "prefix")],
        mutually_exclusive=[("key", "prefix"), ("prefix", "wait_for")],
        required_if=[("wait_for", "equal", ("wait_value",)), ("wait_for", "different", ("wait_value",))],
    )


if __name__ == "__main__":
    main()
