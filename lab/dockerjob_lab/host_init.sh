#!/usr/bin/env bash
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Becomes a lab host. "enter NETNS" waits for the word "go" on stdin (until lab.py has put it
# into the host's cgroup), joins the host's namespaces and stays as the parent whose end ends
# the host; "init" builds the host's root on an overlay of the machine's, starts sshd and
# becomes tini. In the environment: HOST_NAME, HOST_STATE (the host's directory), LAB_STATE
# (the lab's).
set -euo pipefail

enter() {
  local netns=$1 word
  read -r word
  [[ $word == go ]]
  exec nsenter --net="/run/netns/$netns" \
    unshare --mount --uts --ipc --pid --fork --kill-child bash "$0" init </dev/null
}

build_root() {
  local root=$HOST_STATE/root
  mount -t overlay -o "lowerdir=/,upperdir=$HOST_STATE/upper,workdir=$HOST_STATE/work" "dj-$HOST_NAME" "$root"
  cd "$root"
  mount -t proc proc proc
  # A sysfs of this network namespace, with the machine's cgroups, which dockerd needs.
  mount -t sysfs sysfs sys
  mount --rbind /sys/fs/cgroup sys/fs/cgroup
  mount --rbind /dev dev
  mount -t tmpfs -o mode=1777 tmpfs dev/shm
  mount -t tmpfs -o mode=755 tmpfs run
  mount -t tmpfs -o mode=1777 tmpfs tmp
  # overlay2 doesn't work on an overlay, so Docker's data lies beside it.
  mount --bind "$HOST_STATE/docker" var/lib/docker
  mount --bind "$LAB_STATE/scratch" scratch
  mount --bind "$LAB_STATE/home" home
  mount --bind "$LAB_STATE/share" share
  mkdir -m 1777 run/lock
  mkdir -m 755 run/sshd
  : >run/utmp
}

init() {
  # Kept open: once the root has changed, the host's directory is out of sight. The pid is
  # the machine's view of this process, for /proc is still the machine's.
  exec 3>"$HOST_STATE/init.pid"
  local pid _
  read -r pid _ </proc/self/stat
  mount --make-rprivate /
  hostname "$HOST_NAME"
  build_root
  pivot_root . mnt
  cd /
  umount -l /mnt
  /usr/sbin/sshd
  until [[ -s /run/sshd.pid ]]; do
    sleep 0.02
  done
  echo "$pid" >&3
  exec 3>&- env -u HOST_NAME -u HOST_STATE -u LAB_STATE tini -s -- sleep infinity
}

case ${1-} in
  enter | init) "$@" ;;
  *)
    echo "usage: $0 enter NETNS | init" >&2
    exit 2
    ;;
esac
