# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation that the etcd modules share: how to reach etcd, and what their attributes mean."""

from __future__ import annotations


class ModuleDocFragment:
    """Ansible's name for a fragment; the options are those of ``module_utils/etcd_options.py``."""

    DOCUMENTATION = r"""
options:
  target:
    description:
      - Where etcd is, either V(unix:/path) for a host's relay to the members, or V(host:port) for one member.
    type: str
    default: unix:/run/dockerjob/relay/etcd.sock
  ca_cert:
    description:
      - File with the certificate authority of etcd's servers, on the host the module runs on.
    type: path
    required: true
  client_cert:
    description:
      - File with the client certificate.
      - Its common name is the etcd user the module acts as. There are no passwords.
    type: path
    required: true
  client_key:
    description:
      - File with the private key of O(client_cert).
    type: path
    required: true
  server_name:
    description:
      - Name that the certificate of every member carries, so that it holds through a relay too.
    type: str
    default: etcd
  timeout:
    description:
      - Seconds that a request to etcd may take, retries included.
      - A request that etcd refused only because users or roles were just being changed is repeated.
    type: float
    default: 5.0
requirements:
  - etcd3 0.12.0 (Debian package C(python3-etcd3)) on the host the module runs on
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying target.
  diff_mode:
    description: Will return details on what has changed, or in C(check_mode) would change, when in diff mode.
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that nobody else changes etcd meanwhile.
"""
