# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's LSF: the commands that users know, thin on top of the lab's Slurm. For labs only, it is on no site.

It runs on the lab's hosts, from ``/share/lsf/lib``, with the standard library alone; ``lab.py submit`` uses the
same parts from outside. Facts are from IBM's documentation of LSF 10.1 and from recordings of OpenLava 4.0.
"""


class LsfError(Exception):
    """What a command of LSF's ends with; the message is one line for the user."""
