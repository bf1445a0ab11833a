#!/bin/sh
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Installs the infrastructure layer into the image it runs in, as root, at build time:
#   install.sh environment   programs, and Python with the wheels beside this script
#   install.sh agent         the packages dockerjob_core and dockerjob_agent beside it
# Debian-like (apt) and RHEL-like (dnf) images.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=/opt/dockerjob

packages_apt() {
  export DEBIAN_FRONTEND=noninteractive
  # A package that starts its service would do so in the build container.
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
  apt-get -qq update
  apt-get -qq install --yes --no-install-recommends \
    iproute2 iputils-ping openssh-client openssh-server python3
  rm -rf /usr/sbin/policy-rc.d /var/lib/apt/lists/* /var/cache/apt/*.bin
}

packages_dnf() {
  dnf -y install iproute iputils openssh-clients openssh-server python3.11
  dnf clean all
}

install_programs() {
  if command -v apt-get >/dev/null; then
    packages_apt
  elif command -v dnf >/dev/null; then
    packages_dnf
  else
    echo "dockerjob: this image has neither apt-get nor dnf; see docs/images.md for what to install by hand" >&2
    exit 1
  fi
  # Containers run without privileges and with no-new-privileges: file capabilities would make
  # the kernel refuse to start ping at all, and the set-uid bit is of no use.
  ping=$(command -v ping)
  if command -v setcap >/dev/null; then setcap -r "$ping" 2>/dev/null || true; fi
  chmod u-s "$ping"
  # A key made at installation would be the same in every container; each makes its own.
  rm -f /etc/ssh/ssh_host_*
}

newest_python() {
  for candidate in python3.13 python3.12 python3.11 python3; do
    command -v "$candidate" >/dev/null || continue
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && { command -v "$candidate"; return; }
  done
  echo "dockerjob: the agent needs Python 3.11 or newer, and this image's distribution has none" >&2
  exit 1
}

# Containers start often and can't write here: compile once, never look back at the sources.
compile() { "$root/bin/python" -I -m compileall -q --invalidation-mode unchecked-hash "$1" >/dev/null || true; }

install_libraries() {
  python=$(newest_python)
  "$python" -m venv --without-pip "$root"
  pip_wheel=$(ls "$here"/wheels/pip-*.whl)
  grep -v '^pip==' "$here/requirements.txt" >"$here/agent-requirements.txt"
  "$root/bin/python" "$pip_wheel/pip" --disable-pip-version-check --quiet install --root-user-action=ignore \
    --no-index --find-links "$here/wheels" --no-compile --requirement "$here/agent-requirements.txt"
  site=$(site_packages)
  # A .pth file is executed at every start of Python; namespace packages have not needed one since 3.3.
  rm -rf "$site/supervisor/tests" "$site"/*-nspkg.pth
  compile "$site"
}

site_packages() { "$root/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

install_agent() {
  site=$(site_packages)
  for package in dockerjob_core dockerjob_agent; do
    rm -rf "${site:?}/$package"
    cp -R "$here/$package" "$site/"
    compile "$site/$package"
  done
  cat >"$root/bin/dockerjob-agent" <<'PYTHON'
#!/opt/dockerjob/bin/python -I
from dockerjob_agent.cli import main

raise SystemExit(main())
PYTHON
  chmod 755 "$root/bin/dockerjob-agent"
  "$root/bin/dockerjob-agent" check --no-application
}

case ${1-} in
  # Two commands, not "a && b": in such a list "set -e" is off.
  environment)
    install_programs
    install_libraries
    ;;
  agent) install_agent ;;
  *) echo "usage: install.sh environment|agent" >&2; exit 2 ;;
esac
