#!/usr/bin/env python3
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster on one machine; see docs/lab.md."""

import sys

from dockerjob_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
