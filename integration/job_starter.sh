#!/bin/sh
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# job_starter.sh [--if-asked] COMMAND [ARGUMENT...]: runs a batch job's command in containers, so
# that its script needs no wrapper line. What would have run on the host becomes COMMAND of
# hpc_submit_dockerjob.
#
# Runs as:   the job's user, on the job's first host, in place of the command, with the job's
#            environment. It has no rights of its own and guards nothing.
# Installed: LSF: JOB_STARTER in lsb.applications or lsb.queues, without "%USRCMD": LSF pastes the
#            user's text there, and its quotes end those around it. Grid Engine: starter_method of
#            a queue is gridengine/starter_method.sh. The role submit_host puts all of it in
#            /opt/dockerjob/integration.
# Fails:     with the wrapper's own exit status (docs/exit-status.md); 203 if the wrapper isn't on
#            this host. What isn't for containers runs as if this weren't here.
# Sources:   IBM, "JOB_STARTER" and OpenLava 4.0, instrJobStarter1(): the command's words come as
#            arguments, and of "bsub < script" one, $LSB_JOBFILENAME.shell. Grid Engine 8.1.9,
#            queue_conf(5), starter_method; seen there: words come as they were submitted, and a
#            script's name is JOB_SCRIPT, in the spool of sge_execd.
#
# A command is for containers if APPLICATION is set, or without --if-asked always; but never if it
# is the wrapper, or a script that calls the wrapper itself. JOBDIR is the current directory unless
# it is set, or the job stages data. A script that lies in the batch system's spool, where no
# container sees it, is handed over as text, if a Bourne shell runs it.
set -u

LONGEST=131000 # of a variable, in bytes: MAX_ARG_STRLEN, less what is put around a script

say() { printf 'job_starter: %s\n' "$*" >&2; }

# The wrapper of the release that this belongs to.
root=/opt/dockerjob
case $0 in /*/integration/job_starter.sh)
  [ -x "${0%/integration/*}/bin/hpc_submit_dockerjob" ] && root=${0%/integration/*} ;;
esac
wrapper=$root/bin/hpc_submit_dockerjob

# Print a word so that a shell reads it as one, whatever is in it.
quoted() {
  case $1 in
    '' | *[!A-Za-z0-9_./:=@%+,-]*)
      printf "'"
      printf %s "$1" | LC_ALL=C /bin/sed "s/'/'\\\\''/g"
      printf "'"
      ;;
    *) printf %s "$1" ;;
  esac
}

# Print words, each so that a shell reads it as one.
all_quoted() {
  between=
  for word in "$@"; do
    printf %s "$between"
    quoted "$word"
    between=' '
  done
}

# Whether the command is one line for a shell, as of qrsh, and no words.
is_line() {
  [ $# -eq 1 ] && [ ! -e "$1" ] && case $1 in *[[:space:]]*) true ;; *) false ;; esac
}

calls_wrapper() {
  case $1 in hpc_submit_dockerjob | */hpc_submit_dockerjob) return 0 ;; esac
  [ -f "$1" ] && [ -r "$1" ] &&
    /usr/bin/head -c 1048576 -- "$1" | LC_ALL=C /bin/grep -aq '^[^#]*hpc_submit_dockerjob'
}

# Whether a file is the batch system's own copy of the job's script.
is_spooled() {
  case $1 in
    */job_scripts/*) [ "$1" = "${JOB_SCRIPT:-}" ] ;;
    *.shell) [ "$1" = "${LSB_JOBFILENAME:-}.shell" ] ;;
    *) false ;;
  esac
}

# Print what runs a script, and the argument after it: Grid Engine's shell where it decides, else
# that of the first line, as execve(2) splits it.
interpreter_of() {
  if [ -n "${SGE_STARTER_SHELL_PATH:-}" ] && [ "${SGE_STARTER_SHELL_START_MODE:-}" != unix_behavior ]; then
    printf '%s\n' "$SGE_STARTER_SHELL_PATH"
    return
  fi
  IFS= read -r first <"$1" || :
  case $first in '#!'*) printf '%s\n' "${first#??}" ;; *) echo /bin/sh ;; esac
}

is_shell() {
  case ${1##*/} in sh | bash | dash | ksh | zsh) true ;; *) false ;; esac
}

# Print COMMAND for a spooled script: the interpreter, and the text in place of the file.
text_of_script() {
  script=$1
  shift
  read -r program option <<END
$(interpreter_of "$script")
END
  case ${program##*/} in env) shell=$option ;; *) shell=$program ;; esac
  size=$(/usr/bin/wc -c <"$script")
  is_shell "$shell" && [ "$size" -le "$LONGEST" ] || return 1
  quoted "$program"
  printf ' %s-c ' "${option:+$(quoted "$option") }"
  # The end marks lines that $() would take away.
  text=$(/bin/cat -- "$script" && printf x)
  quoted "${text%x}"
  printf ' '
  all_quoted "${script##*/}" "$@"
}

# Print COMMAND.
command_of() {
  if is_line "$@"; then
    printf %s "$1"
  elif ! { is_spooled "$1" && text_of_script "$@"; }; then
    all_quoted "$@"
  fi
}

# Do what the batch system does without a starter.
run_here() {
  shell=${SGE_STARTER_SHELL_PATH:-}
  is_line "$@" && exec "${shell:-/bin/sh}" -c "$1"
  if [ -n "$shell" ] && [ "${SGE_STARTER_SHELL_START_MODE:-}" != unix_behavior ]; then
    login=
    [ "${SGE_STARTER_USE_LOGIN_SHELL:-}" = true ] && is_shell "$shell" && login=-l
    is_spooled "$1" && exec "$shell" ${login:+"$login"} "$@"
  fi
  exec "$@"
}

always=yes
if [ "${1:-}" = --if-asked ]; then
  always=
  shift
fi
if [ $# -eq 0 ]; then
  say "the batch system gave no command; see JOB_STARTER or starter_method"
  exit 201
fi
if calls_wrapper "$1" || [ -z "$always${APPLICATION:-}" ]; then
  run_here "$@"
fi
if [ -z "${APPLICATION:-}" ]; then
  # The wrapper would advise to export it in the script, which is what runs in the image.
  say 'APPLICATION is not set: export it where you submit, or use bsub -a "docker(NAME:TAG)"'
  exit 201
fi
if [ ! -x "$wrapper" ]; then
  say "there is no $wrapper on $(/bin/uname -n); cluster_setup.yml installs it on submit hosts"
  exit 203
fi
command=$(command_of "$@")
if [ -n "${COMMAND:-}" ] && [ "$COMMAND" != "$command" ]; then
  say "the job's own command is run; COMMAND of the environment is not used"
fi
COMMAND=$command
# A job that brings its data along has scratch space for them.
[ -n "${STAGE_IN:-}${STAGE_OUT:-}" ] || JOBDIR=${JOBDIR:-$PWD}
export COMMAND
[ -z "${JOBDIR:-}" ] || export JOBDIR
exec "$wrapper"
