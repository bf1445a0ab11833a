#!/bin/sh
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# gridengine.sh install|execd|stop, gridengine.sh master HOST...: Debian's Grid Engine on hosts of the lab,
# for test_gridengine.py. Runs as root in a host; the first host is the master. Packages lie in
# /share/gridengine. The queue is integration/gridengine, as docs/batch_integration.md has it.
set -eu
export SGE_ROOT=/var/lib/gridengine SGE_CELL=default PATH=/usr/sbin:/usr/bin:/sbin:/bin
installed=/share/dockerjob/integration/gridengine

# Without what Debian's scripts would start.
install() {
  if [ ! -x /usr/sbin/sge_execd ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    DEBIAN_FRONTEND=noninteractive dpkg --install --force-confold /share/gridengine/*.deb
    rm /usr/sbin/policy-rc.d
  fi
  cp $installed/qlogin.sh /etc/profile.d/dockerjob_qlogin.sh
  echo node1 >$SGE_ROOT/default/common/act_qmaster
}

# Daemons give their own environment to jobs.
start() { env -i PATH="$PATH" SGE_ROOT=$SGE_ROOT SGE_CELL=$SGE_CELL "$@"; }

# The site files, with the path of the lab's installation.
site_file() { sed 's#/opt/dockerjob#/share/dockerjob#; /^#/d' "$installed/$1" >"/tmp/$1"; }

add_host() {
  qconf -as "$1" || :
  qconf -ah "$1" || :
  printf '%s NONE\n' load_scaling complex_values user_lists xuser_lists projects xprojects usage_scaling \
    report_variables >/tmp/host
  echo "hostname $1" >>/tmp/host
  qconf -Ae /tmp/host || :
}

master() {
  chown -R sgeadmin /var/spool/gridengine $SGE_ROOT/default
  start sge_qmaster
  # Jobs of a run that broke off would keep the slots.
  qdel -f -u '*' || :
  for host in "$@"; do add_host "$host"; done
  qconf -ssconf | sed 's/^schedule_interval .*/schedule_interval 0:0:1/; s/^flush_\(submit\|finish\)_sec .*/flush_\1_sec 1/' \
    >/tmp/scheduler
  qconf -Msconf /tmp/scheduler
  # qconf gives the template to an editor, and to nothing else.
  cat >/tmp/editor <<END
#!/bin/sh
sed -i 's/^pe_list .*/pe_list NONE/; s/^hostlist .*/hostlist $*/; s/^load_thresholds .*/load_thresholds NONE/
  s/^slots .*/slots 2/; s#^shell  .*#shell /bin/bash#' "\$1"
END
  chmod +x /tmp/editor
  qconf -sq docker.q >/dev/null 2>&1 || EDITOR=/tmp/editor qconf -aq docker.q
  site_file queue.conf
  qconf -Mattr queue /tmp/queue.conf docker.q
  site_file pe.conf
  qconf -sp docker >/dev/null 2>&1 || qconf -Ap /tmp/pe.conf
  qconf -aattr queue pe_list docker docker.q
}

stop() {
  pkill -x sge_execd || :
  pkill -x sge_qmaster || :
  # The next one could not start beside it.
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    pgrep -x sge_qmaster >/dev/null || break
    sleep 1
  done
}

action=$1
shift
case $action in
  install) install ;;
  master) master "$@" ;;
  execd) start sge_execd ;;
  stop) stop ;;
esac
