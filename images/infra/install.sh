#!/bin/sh
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Installs the infrastructure layer into the image it runs in, as root, at build time.
# Beside it lie wheels/, requirements.txt, and the packages dockerjob_core and
# dockerjob_agent. Debian-like (apt) and RHEL-like (dnf) images.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=/opt/dockerjob

if command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  # A package that starts its service would do so in the build container.
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
  apt-get -qq update
  apt-get -qq install --yes --no-install-recommends \
    iproute2 iputils-ping openssh-client openssh-server python3
  rm -rf /usr/sbin/policy-rc.d /var/lib/apt/lists/* /var/cache/apt/*.bin
  python=/usr/bin/python3
elif command -v dnf >/dev/null; then
  dnf -y install iproute iputils openssh-clients openssh-server python3.11
  dnf clean all
  python=/usr/bin/python3.11
else
  echo "dockerjob: this image has neither apt-get nor dnf; see docs/images.md for what to install by hand" >&2
  exit 1
fi

"$python" - <<'PYTHON'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"dockerjob: the agent needs Python 3.11 or newer, the image has {sys.version.split()[0]}")
PYTHON

# Containers run without privileges and with no-new-privileges: file capabilities would make
# the kernel refuse to start ping at all, and the set-uid bit is of no use.
ping=$(command -v ping)
if command -v setcap >/dev/null; then setcap -r "$ping" 2>/dev/null || true; fi
chmod u-s "$ping"
# A key made at installation would be the same in every container; each makes its own.
rm -f /etc/ssh/ssh_host_*

"$python" -m venv --without-pip "$root"
pip_wheel=$(ls "$here"/wheels/pip-*.whl)
grep -v '^pip==' "$here/requirements.txt" >"$here/agent-requirements.txt"
"$root/bin/python" "$pip_wheel/pip" --disable-pip-version-check --quiet install --root-user-action=ignore \
  --no-index --find-links "$here/wheels" --no-compile --requirement "$here/agent-requirements.txt"

site=$("$root/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -R "$here/dockerjob_core" "$here/dockerjob_agent" "$site/"
rm -rf "$site"/supervisor/tests "$site"/grpc/_cython/_credentials
cat >"$root/bin/dockerjob-agent" <<'PYTHON'
#!/opt/dockerjob/bin/python -I
from dockerjob_agent.cli import main

raise SystemExit(main())
PYTHON
chmod 755 "$root/bin/dockerjob-agent"

# Containers have a read-only view of this and start often: compile once, never look back.
"$root/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$site" || true
"$root/bin/python" -m compileall -q --invalidation-mode unchecked-hash \
  "$("$root/bin/python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" >/dev/null 2>&1 || true
"$root/bin/dockerjob-agent" check --no-application
