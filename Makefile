# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later

SHELL := /bin/bash
.DEFAULT_GOAL := help

LAB_NAME ?= lab
INVENTORY := .lab/$(LAB_NAME)/inventory.yml
BIN := .venv/bin
export LAB_NAME
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/.build
export PATH := $(CURDIR)/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

.PHONY: help setup demo test lab-up lab-down lab-status clean images cluster slurm lint unit integration molecule e2e security soak bench

help: ## show this help
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## install what the project needs on this machine: Debian packages, .venv
	@lab/bootstrap.sh

demo: setup ## bring up a cluster on this machine and run OpenFOAM in containers over two hosts
	@lab/demo.sh

test: setup ## run all tests, and clean up after them
	@tests/run.sh

lab-up: setup ## start the lab's hosts (no services yet)
	@$(BIN)/ansible-playbook playbooks/lab_up.yml

lab-down: ## remove the lab: every process, namespace, link, mount and file of it
	@[ ! -x $(BIN)/python ] || $(BIN)/python lab/lab.py --name $(LAB_NAME) down

clean: lab-down ## remove the lab and what was built for it: images, .venv, .build
	@rm -rf "$${DOCKERJOB_LAB_IMAGES:-/var/lib/dockerjob-lab/images}" .venv .build .lab

lab-status: ## show the lab's hosts and what runs on them
	@$(BIN)/python lab/lab.py --name $(LAB_NAME) status

images: setup ## build the application images (only what has changed)
	@$(BIN)/python images/build.py

cluster: lab-up images ## apply cluster_setup.yml to the lab
	@$(BIN)/ansible-playbook -i $(INVENTORY) playbooks/cluster_setup.yml

slurm: ## run Slurm on the lab's hosts, which must be a set-up cluster
	@$(BIN)/ansible-playbook -i $(INVENTORY) playbooks/lab_slurm.yml

lint: setup ## ruff, mypy, yamllint, ansible-lint, shellcheck, secrets, advisories
	@tests/lint.sh

unit: setup ## tests of pure logic
	@$(BIN)/pytest tests/unit

integration: setup images ## tests on real etcd, Open vSwitch and dockerd
	@$(BIN)/pytest tests/integration

molecule: setup images ## molecule scenarios
	@tests/molecule.sh

e2e: setup images ## whole jobs in a lab of their own
	@LAB_NAME=test $(BIN)/pytest tests/e2e

security: setup ## attacks of ordinary users, in the lab of the whole jobs
	@LAB_NAME=test lab/ensure_cluster.sh
	@LAB_NAME=test $(BIN)/pytest tests/security

soak: setup ## 30 jobs at once, 100 under random kills, much output, Slurm in full; an hour or so
	@LAB_NAME=test lab/ensure_cluster.sh
	@LAB_NAME=test DOCKERJOB_SOAK=1 $(BIN)/pytest -s tests/e2e/test_many.py tests/e2e/test_faults.py tests/e2e/test_outages.py tests/e2e/test_slurm.py tests/e2e/test_lsf_front.py

bench: ## measure against the floor, in a lab of its own; writes bench/results.json
	@lab/bootstrap.sh openfoam openmpi-bin  # pitzDaily is run on the bare hosts, too
	@$(BIN)/python lab/lab.py --name bench up --compute 4
	@LAB_NAME=bench lab/ensure_cluster.sh
	@LAB_NAME=bench $(BIN)/python bench/bench.py; status=$$?; $(BIN)/python lab/lab.py --name bench down; exit $$status
