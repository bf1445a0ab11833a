# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests share: the fixtures of the real services live in a file each."""

import os
import signal

from hypothesis import settings

# The same examples in each run: what CI finds, everyone finds.  The machines' speed is no property.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile(
    "search", max_examples=int(os.environ.get("EXAMPLES", "5000")), database=None, deadline=None
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Under nohup or in a shell's background these are ignored, and what the tests start would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["etcd_fixtures", "agent_fixtures", "cluster_fixtures", "host_fixtures", "job_fixtures"]
