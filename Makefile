# install  what the app needs, in .venv        run    serve the app (honours HOST, PORT)
# test     all tests, in a real browser too    check  format, lint, types    bench  measure speed
# test-cluster   those on two Ray nodes of this machine; installs Ray first
# The Pythons 3.x that are tested. PYTHON names the one that .venv is made with; else the first that is here and fits.
MINORS := 14 13 12 11
PYTHONS := $(or $(PYTHON),python3 $(addprefix python3.,$(MINORS)))
NEEDED := Python 3.$(lastword $(MINORS)) to 3.$(firstword $(MINORS))
VENV   := .venv
BIN    := $(VENV)/bin
CHROME := chromium chromium-browser google-chrome

.PHONY: install run test test-cluster check bench system
.DEFAULT_GOAL := run
.DELETE_ON_ERROR:

install: $(VENV)/.installed

run: install
	@$(BIN)/python app.py

# By file, on all processors and one more: those in a browser wait much of their time. In the order of the folders, as
# that has the longest files first. SLOWER=5 runs the pages as on a machine five times slower; TESTS names what is run.
JOBS = $(shell expr $$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) + 1)
test: export OMP_NUM_THREADS := 1
test: $(VENV)/.installed-dev system
	@$(BIN)/python -m pytest -p no:cacheprovider -n $(JOBS) --dist loadfile --no-loadscope-reorder \
		-m "not cluster" $(if $(SLOWER),--slower $(SLOWER)) $(TESTS)

test-cluster: export OMP_NUM_THREADS := 1
test-cluster: $(VENV)/.installed-cluster
	@$(BIN)/python -m pytest -p no:cacheprovider -m cluster tests/cluster tests/backends/test_backends.py

check: $(VENV)/.installed-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: install
	@$(BIN)/python -m benchmarks

# Prints what a Python lacks to make .venv with; nothing where it fits.
define LACKS
import sys
version = "%d.%d" % sys.version_info[:2]
missing = []
for name in ("venv", "ensurepip"):
    try:
        __import__(name)
    except ImportError:
        missing.append(name)
if version not in ["3." + minor for minor in "$(MINORS)".split()]:
    print("is Python " + version)
elif missing:
    print("has no %s (on Debian and Ubuntu: apt-get install python%s-venv)" % (" and no ".join(missing), version))
endef
export LACKS

$(BIN)/python:
	@for python in $(PYTHONS); do \
		lacks=$$($$python -c "$$LACKS" 2>/dev/null) || lacks="does not run"; \
		[ -n "$$lacks" ] || exec $$python -m venv $(VENV); \
		command -v $$python >/dev/null && said="$$said; $$python $$lacks"; \
	done; \
	echo "$(NEEDED) is needed, and none is here$$said."; \
	echo "Install one, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; \
	exit 1

$(VENV)/.installed: requirements.txt | $(BIN)/python
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/.installed-cluster: requirements-cluster.txt $(VENV)/.installed-dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-cluster.txt
	@touch $@

# The browser tests drive Debian's Chromium (CHROMIUM names another one); one test module starts a PostgreSQL of its own.
system:
	@missing=; \
	[ -n "$$CHROMIUM" ] || command -v $(CHROME) >/dev/null 2>&1 || missing="chromium"; \
	command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	if [ -n "$$missing" ]; then \
		echo "Installing for the tests: $$missing"; \
		sudo=$$(test "$$(id -u)" = 0 || echo sudo); \
		$$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq $$missing >/dev/null \
			|| { echo "Could not install $$missing. Install by hand; CHROMIUM may name a Chrome binary."; exit 1; }; \
	fi
