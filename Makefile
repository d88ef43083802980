# The only door: `make` alone says what there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests start real daemons and wait for them; four at a time fit two cores. Those that measure run one by one, and
# first: the bytecode that they leave is there for the others, who would all make it at the same time.
# Without the suites that load the machine: tracing would be what they measure.
MEASURED := tests/*.py $(wildcard tests/[!s]*/) $(addprefix tests/system/test_, \
	commands.py ending.py limits.py log.py reload.py startup.py stop.py)
FUZZ ?= 60
ROUNDS ?= 5
PEERS = faketime groff haproxy iproute2 jq libcap2-bin libnginx-mod-stream locales logrotate man-db nginx-light openssl \
	prometheus python3-venv rsyslog socat strace util-linux valgrind
# Hundreds of processes are started by a test run, and without bytecode each of them would compile all sources anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -X dev -m pytest

# Where `make install` puts things, by GNU's conventions: DESTDIR goes before every path, and into no file.
prefix = /usr/local
exec_prefix = $(prefix)
bindir = $(exec_prefix)/bin
libdir = $(exec_prefix)/lib
datarootdir = $(prefix)/share
docdir = $(datarootdir)/doc/echod
mandir = $(datarootdir)/man
# Not below the prefix: /etc/echod.toml is the file that echod reads when none is named.
sysconfdir = /etc
# systemd looks below these two prefixes, and else only in /etc.
unitdir = $(if $(filter /usr /usr/local,$(prefix)),$(prefix)/lib,/etc)/systemd/system
INSTALL = install
INSTALL_DATA = $(INSTALL) -m 644

home = $(libdir)/echod
TREE = $(DESTDIR)$(home)
PIP = bin/python -m pip --quiet --disable-pip-version-check --no-input
KEPT = $(DESTDIR)$(sysconfdir)/echod.toml
DROP_INS = $(DESTDIR)$(unitdir)/echod.service.d
# Units name the command where it is, and the configuration where that is not the default one.
CONFIG = $(if $(filter-out /etc,$(sysconfdir)), -c $(sysconfdir)/echod.toml)
NAMED = sed -e 's|=/usr/local/bin/echod |=$(bindir)/echod |' -e 's,^Exec\(Start\|Reload\)=.*,&$(CONFIG),'
EXAMPLES = etc/echod.logrotate etc/grafana-dashboard.json etc/prometheus-rules.yml $(wildcard etc/shipping/*) \
	systemd/echod-classic.service systemd/echod.sysusers systemd/echod.tmpfiles systemd/echod.service.d/tls.conf

.DEFAULT_GOAL := help
.PHONY: help run test unit peers coverage storm bench bench-cost bench-gate format lint types check check-all man clean install install-socket uninstall

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1	/p' $(MAKEFILE_LIST) | expand -t 18

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $(STAMP)

run: $(STAMP) ## run echod in the foreground: ^C drains, ^C again stops
	@exec $(BIN)/echod run

test: $(STAMP) ## run the tests, a few minutes
	$(PYTEST) -m alone
	$(PYTEST) -m 'not alone' -n 4 --dist loadgroup

unit: $(STAMP) ## run the tests but for those that start the daemon, under a minute
	$(PYTEST) -m alone --ignore tests/system
	$(PYTEST) -m 'not alone' -n 2 --dist loadgroup --ignore tests/system

peers: ## install the Debian packages that some tests use; without them those tests are skipped
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		missing=$$(for name in $(PEERS); do dpkg -s $$name >/dev/null 2>&1 || echo $$name; done); \
		[ -z "$$missing" ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -qq --no-install-recommends $$missing >/dev/null; }; \
	else echo "peers: without root or apt-get nothing is installed"; fi

storm: $(STAMP) ## run the long forms of tests, about half an hour; FUZZ=3600 fuzzes for longer than a minute each
	$(PYTEST) --storm --fuzz $(FUZZ) --timeout $$(($(FUZZ) + 900)) -rP

coverage: $(STAMP) ## measure branch coverage, in all processes; fails below 95 %
	rm -f .coverage .coverage.*
	ECHOD_TEST_SCALE=4 $(BIN)/python -m coverage run -m pytest -m 'not alone' -n 2 --dist loadgroup --timeout 300 $(MEASURED)
	find . -maxdepth 1 -name '.coverage.*' -empty -delete  # of a process that was killed as it began to write
	-$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --fail-under=95

$(STAMP)-bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

bench: $(STAMP)-bench ## measure echod beside asyncio, uvloop, C, Go, node and socat; some minutes
	$(BIN)/python -m bench --rounds $(ROUNDS)

bench-cost: $(STAMP) ## count what log and metrics add to a message
	$(BIN)/python -m bench cost

bench-gate: $(STAMP) ## hold the instructions of a message against the best so far; RECORD=1 records them
	$(BIN)/python -m bench gate $(if $(RECORD),--record)

format: $(STAMP) ## lay out the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP) ## look for mistakes and untidiness
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

man: $(STAMP) ## write the manual pages of the configuration and of the log from models and catalogue
	$(BIN)/python -c 'from echod.config import manual; print(manual.page(), end="")' >man/echod.toml.5
	$(BIN)/python -c 'from echod.observe import schema; print(schema.page(), end="")' >man/echod-events.7

types: $(STAMP) ## check the types, strictly
	$(BIN)/mypy

check: lint types test coverage bench-gate ## all gates but the long forms

check-all: check storm ## all gates and the long forms of tests, about an hour

clean: ## remove all that was made
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first on PATH may lie where the service's user cannot read, in /root say. A command line overrides it.
install: PYTHON = /usr/bin/python3

# The new tree is finished beside the old one and then takes its place: a failure on the way leaves the old one whole,
# and a daemon that runs has all that it needs in memory. No name of a building place stays in any file.
install: ## install for the whole system; see README for the variables
	@set -e; umask 022; $(INSTALL) -d $(DESTDIR)$(libdir); trap 'rm -rf $(TREE).new' EXIT; rm -rf $(TREE).new; \
	$(PYTHON) -m venv $(TREE).new; \
	$(TREE).new/$(PIP) install --root-user-action=ignore --no-compile .; \
	$(TREE).new/$(PIP) uninstall --yes setuptools pip; \
	find $(TREE).new/bin -mindepth 1 ! -name 'python*' -delete; \
	sed -i '/^command/d' $(TREE).new/pyvenv.cfg; \
	find $(TREE).new -name direct_url.json -delete; \
	$(TREE).new/bin/python -m compileall -q -s $(TREE).new -p $(home) $(TREE).new/lib; \
	if [ -e $(TREE) ]; then mv $(TREE) $(TREE).old; fi; mv $(TREE).new $(TREE); rm -rf $(TREE).old
	umask 022; $(INSTALL) -d $(addprefix $(DESTDIR),$(bindir) $(sysconfdir) $(unitdir) $(docdir) \
		$(mandir)/man5 $(mandir)/man7 $(mandir)/man8)
	printf '%s\n' '#!$(home)/bin/python -I' 'import sys' '' 'from echod.cli import main' '' 'sys.exit(main())' \
		| $(INSTALL) -m 755 /dev/stdin $(DESTDIR)$(bindir)/echod
	[ -e $(KEPT) ] || [ -L $(KEPT) ] || $(INSTALL_DATA) etc/echod.toml $(KEPT)
	@set -e; unit=$$($(TREE)/bin/python -I $(DESTDIR)$(bindir)/echod show unit); \
	printf '%s\n' "$$unit" | $(if $(DESTDIR),sed 's|$(DESTDIR)||g' |) $(NAMED) \
		| $(INSTALL_DATA) /dev/stdin $(DESTDIR)$(unitdir)/echod.service
	$(INSTALL_DATA) man/echod.8 $(DESTDIR)$(mandir)/man8
	$(INSTALL_DATA) man/echod.toml.5 $(DESTDIR)$(mandir)/man5
	$(INSTALL_DATA) man/echod-events.7 $(DESTDIR)$(mandir)/man7
	set -e; for file in $(EXAMPLES); do \
	$(NAMED) $$file | $(INSTALL_DATA) /dev/stdin $(DESTDIR)$(docdir)/$${file##*/}; done
	$(if $(DESTDIR),,@echo 'Now: systemctl daemon-reload && systemctl enable --now echod')

install-socket: ## install echod.socket, which listens on port 7 for the service
	umask 022; $(INSTALL) -d $(DESTDIR)$(unitdir)/echod.service.d
	$(INSTALL_DATA) systemd/echod.socket $(DESTDIR)$(unitdir)
	$(INSTALL_DATA) systemd/echod.service.d/socket.conf $(DESTDIR)$(unitdir)/echod.service.d
	$(if $(DESTDIR),,@echo 'Now: systemctl daemon-reload && systemctl disable --now echod && systemctl enable --now echod.socket')

uninstall: ## remove all that was installed but the configuration
	rm -rf $(TREE) $(DESTDIR)$(docdir)
	rm -f $(addprefix $(DESTDIR),$(bindir)/echod $(mandir)/man8/echod.8 $(mandir)/man5/echod.toml.5 $(mandir)/man7/echod-events.7 \
		$(addprefix $(unitdir)/,echod.service echod.socket echod.service.d/socket.conf))
	[ ! -d $(DROP_INS) ] || rmdir --ignore-fail-on-non-empty $(DROP_INS)
