# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests share: the fixtures of the real services live in a file each."""

pytest_plugins = ["agent_fixtures", "etcd_fixtures", "host_fixtures"]
