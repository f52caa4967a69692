# make demo: the main job on the mini corpus; make test: the tests. Each makes .venv first (7 GB, some minutes).
unexport CDPATH
VENV = .venv
PYTHON = $(firstword $(foreach p,python3.11 python3.12 python3,$(if $(shell $(p) -c 'import sys; print(sys.version_info[:2] in ((3, 11), (3, 12)) or "")' 2>/dev/null),$(p))))
PYTHON312 = $(firstword $(foreach p,python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python3.12),$(if $(shell $(p) -c 'print(1)' 2>/dev/null),$(p))))

.PHONY: demo test test-312 test-slow lint venv clean

demo: venv
	cd egs/mini && ./run.sh

# Two files of tests at a time, a thread each: most tests start programs and wait (tests/conftest.py has the order).
test: venv lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" \
		--doctest-modules espnet_pinch tests

# What depends on ESPnet's version, with that of Python 3.12, where that interpreter is there.
test-312:
ifeq ($(PYTHON312),)
	@echo "Python 3.12 is not here: its part of the tests is left out"
else
	$(MAKE) venv VENV=.venv312 PYTHON=$(PYTHON312)
	OMP_NUM_THREADS=1 .venv312/bin/python -m pytest -q -n 2 --dist loadfile -m "not slow" \
		$(addprefix tests/,test_espnet.py test_resume.py test_nodes.py test_untrusted.py test_families.py)
endif

test-slow: venv
	$(VENV)/bin/python -m pytest -q -m slow tests

lint: venv
	$(VENV)/bin/ruff check espnet_pinch benchmarks examples tests setup.py
	$(VENV)/bin/ruff format --check -q espnet_pinch benchmarks examples tests setup.py
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck -x -P egs/librispeech_100 -P . $$(git ls-files -s '*.sh' | grep -v ^120000 | cut -f 2) .ci/run

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 is needed; give one with make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --progress-bar off --no-compile -q -e '.[test]'
	$(VENV)/bin/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true # as pip does, on all cores
	touch $@

clean:
	rm -rf .venv .venv312 build *.egg-info
