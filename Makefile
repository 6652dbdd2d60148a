# make run   the main job: the balancer on real backends, with live figures      make test   everything that must hold
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := VICKREY_EDITABLE=1 PYTHONWARNINGS='ignore:Editable installation' $(PY) -m pip install -q --disable-pip-version-check
C_SRC  := $(shell find shm_layout dataplane -name '*.[ch]' -not -name '_*' 2>/dev/null) shm_layout/build_ffi.py dataplane/build_ffi.py

# What a fresh Debian lacks, and what the tests run against.
APT_BASE := gcc libc6-dev python3-dev python3-venv liburing-dev
APT_TEST := apache2 iproute2 clang libclang-rt-14-dev curl wrk apache2-utils nghttp2-client haproxy nginx-light libnginx-mod-stream

.PHONY: run test lint bench results fuzz build clean help
.DEFAULT_GOAL := help

help:
	@echo 'make run     start the demo: real backends, the balancer, open-loop load   (ARGS="--duration 60", "--no-load", …)'
	@echo 'make test    build and run all tests                                       (ARGS="-k adaptive", …)'
	@echo 'make lint    ruff and mypy'
	@echo 'make bench   the benchmarks behind the published figures                   (quick settings; see docs/benchmarks.md)'
	@echo 'make results docs/results.md: Vickrey beside HAProxy, nginx and Envoy      (QUICK=1, ARGS="failure heavy-tail")'
	@echo 'make fuzz    fuzz every parser for FUZZ_SECONDS (60) each'
	@echo 'make build   compile the C parts in place'
	@echo 'make clean   remove everything that was built'

run: $(VENV)/.built
	@$(VENV)/bin/vickrey demo $(ARGS)

# Tests that run real processes have the machine to themselves; what they time is not to wait for a simulation. Status 5
# is pytest's for nothing to run, as when ARGS names tests of one kind.
test: $(VENV)/.dev $(VENV)/.built
	@$(PY) -m pytest -n $$(nproc) -m 'not live' $(ARGS); pure=$$?; [ $$pure = 2 ] && exit 2; \
	$(PY) -m pytest -m live $(ARGS); live=$$?; case $$pure$$live in 00|05|50) ;; *) exit 1;; esac

lint: $(VENV)/.dev $(VENV)/.built
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

bench: $(VENV)/.dev $(VENV)/.built
	@for b in dispatch control_cycle overhead balance; do echo "== benchmarks/$$b.py"; $(PY) benchmarks/$$b.py --quick || exit 1; done

results: $(VENV)/.dev $(VENV)/.built
	@$(PY) -m testbed.compare.results $(if $(QUICK),--quick) $(ARGS)

FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.dev
	@$(PY) tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

build: $(VENV)/.built

# apt-get only as root and only for what is missing; anybody else is told what to install.
define apt_install
	@missing=''; for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing:$$missing"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null || exit 1; \
	  else echo "$(2): these packages are not installed:$$missing" >&2; fi; \
	fi
endef

$(VENV)/.base: pyproject.toml setup.py
	$(call apt_install,$(APT_BASE),needed to build (a C compiler, Python headers, liburing))
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo 'installing vickrey into $(VENV)'
	@$(PIP) 'setuptools>=77' 'cffi>=1.17,<3' wheel
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(call apt_install,$(APT_TEST),tests that need them are skipped)
	@echo 'installing the test tools into $(VENV)'
	@$(PIP) torch==2.13.0  # first: what depends on it would take a build for accelerators
	@$(PIP) --no-build-isolation -e '.[dev,rl,ray,testbed,envoy]'
	@$(PIP) --no-deps 'stable-baselines3>=2.7,<3'
	@touch $@

$(VENV)/.built: $(VENV)/.base $(C_SRC)
	@$(PY) -m shm_layout.build_ffi && $(PY) -m dataplane.build_ffi
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info shm_layout/_*.c dataplane/_*.c
	find . -name '*.so' -delete -o -name '*.o' -delete
	find . -name __pycache__ -prune -exec rm -rf {} +
