# install  what the app needs, in .venv        run    serve the app (honours HOST, PORT)
# test     all tests, in a real browser too    check  format, lint, types    bench  measure speed
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CHROME := chromium chromium-browser google-chrome

.PHONY: install run test test-browser test-others check bench system
.DEFAULT_GOAL := run

install: $(VENV)/.installed

run: install
	@$(BIN)/python app.py

# Those in a browser wait much of their time, so the others run beside them; one thread each keeps them apart.
test: export OMP_NUM_THREADS := 1
test: $(VENV)/.installed-dev system
	@$(MAKE) --no-print-directory -j2 test-browser test-others

test-browser:
	@$(BIN)/python -m pytest -p no:cacheprovider tests/browser

test-others:
	@$(BIN)/python -m pytest -p no:cacheprovider --ignore=tests/browser

check: $(VENV)/.installed-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: install
	@$(BIN)/python -m benchmarks

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
		|| { echo "Python 3.11 or 3.12 is needed; $(PYTHON) is another. Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
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
