# shellcheck shell=bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs on node1 of the lab, as root: pitzDaily with the same ranks on the same hosts, but with the
# hosts' own OpenFOAM (Debian's package, the version of the image) over the hosts' own network. Ranks
# that wait yield, as the lab has them in containers: all hosts share the machine's cores.
set -euo pipefail
case=/scratch/alice/pitzdaily_bare
home=~alice

clean_up() { rm -rf "$case" "$home/.ssh/bench" "$home/.ssh/authorized_keys"; }
trap clean_up EXIT
rm -rf "$case"
cp -r /scratch/lustre/OF_pitzDaily "$case"
rm -rf "$case"/processor*/[1-9]*
printf 'node1 slots=2\nnode2 slots=2\n' >"$case/system/machines"
mkdir -p "$home/.ssh"
rm -f "$home/.ssh/bench" "$home/.ssh/bench.pub"
ssh-keygen -q -t ed25519 -N '' -f "$home/.ssh/bench"
mv "$home/.ssh/bench.pub" "$home/.ssh/authorized_keys"
chown -R alice: "$home/.ssh" "$case"

setpriv --reuid=alice --regid=alice --init-groups env -i -C "$case" HOME="$home" PATH=/usr/bin:/bin \
  WM_PROJECT_DIR=/usr/share/openfoam FOAM_ETC=/usr/share/openfoam/etc \
  mpirun -hostfile system/machines -x WM_PROJECT_DIR -x FOAM_ETC \
  -mca plm_rsh_args "-i $home/.ssh/bench -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR" \
  -mca mpi_yield_when_idle 1 -mca btl_tcp_if_include eth0 -mca oob_tcp_if_include eth0 \
  simpleFoam -parallel
