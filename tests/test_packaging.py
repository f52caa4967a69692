"""What is installed is what is needed: the core runs on its own dependencies, and an extra that is missing is named."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import espnet_pinch
from espnet_pinch.extras import MODULES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

OPTIONAL = {"openvino", "sherpa_onnx", "onnx_asr", "datasets"}  # modules that are not among what tests install

HIDE = """
import sys

class Hide:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, *arguments)

sys.meta_path[:] = map(Hide, sys.meta_path)
"""
ALL_OF_THE_CORE = """
import importlib, pkgutil, espnet_pinch.core
for module in pkgutil.walk_packages(espnet_pinch.core.__path__, "espnet_pinch.core."):
    importlib.import_module(module.name)
"""
ALL_PROGRAMS = """
import importlib, pkgutil, espnet_pinch.bin
import espnet_pinch
from espnet_pinch.extras import how_to_install
for module in pkgutil.iter_modules(espnet_pinch.bin.__path__, "espnet_pinch.bin."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, how_to_install(error.name) or error)
"""


def names(requirements):
    """The distributions that are asked for, without those of other platforms, other Pythons and extras."""
    parsed = (Requirement(text) for text in requirements or ())
    return {canonicalize_name(r.name) for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})}


@pytest.fixture(scope="module")
def distributions():
    """{module: names of the distributions that hold it}"""
    found = metadata.packages_distributions()
    return {module: {canonicalize_name(name) for name in owners} for module, owners in found.items()}


@pytest.fixture(scope="module")
def hidden(distributions):
    """The modules that are installed here, but would not be by `pip install .` in an empty environment."""
    wanted, new = set(), names(PROJECT["dependencies"])
    while new:
        wanted |= new
        new = {name for owner in new for name in names(metadata.requires(owner))} - wanted
    wanted.add("espnet-pinch")
    return {module for module, owners in distributions.items() if not owners & wanted} - sys.stdlib_module_names


@pytest.fixture
def alone(hidden, tmp_path):
    """Runs code where the core's own dependencies are all that can be imported."""

    def run(code, *arguments):
        code = f"HIDDEN = {hidden!r}\n{HIDE}\n{code}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_the_core_installs_torch_and_numpy_alone_and_the_loop_of_the_readme_needs_no_more(alone, hidden):
    assert names(PROJECT["dependencies"]) == {"torch", "numpy"}
    assert {module for modules in MODULES.values() for module in modules} - OPTIONAL <= hidden
    [snippet] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    done = alone(f"{ALL_OF_THE_CORE}\n{snippet}\nprint(pinch_sparsity)")
    assert done.returncode == 0, done.stderr
    assert 0.65 <= float(done.stdout) <= 0.651


def test_every_program_names_the_extra_that_it_misses(alone):
    done = alone(ALL_PROGRAMS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("espnet_pinch.bin.asr_train ") for line in lines), done.stdout
    for line in lines:
        assert re.fullmatch(r"\S+ the package \w+ is not installed: run pip install -e '\.\[\w+\]' .*", line), line


@pytest.mark.parametrize(
    "code, arguments, extra",
    [
        # while the program is imported, and while it runs
        ("import runpy; runpy.run_module('espnet_pinch.bin.report', run_name='__main__')", ["--exp", "x"], "asr"),
        ("from espnet_pinch.cli import main_program; main_program()", ["info", "x"], "asr"),
    ],
)
def test_a_missing_extra_is_one_line(alone, code, arguments, extra):
    done = alone(code, *arguments)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: the package ") and f"pip install -e '.[{extra}]'" in done.stderr


def test_a_module_that_no_extra_installs_shows_its_traceback(alone):
    done = alone("import espnet_pinch.bin\nimport transformers_of_another_world")
    assert done.returncode == 1 and done.stderr.startswith("Traceback") and "another_world" in done.stderr


def test_the_extras_install_the_modules_that_are_said_to_come_with_them(distributions):
    assert set(MODULES) == set(EXTRAS) - {"test"}
    for extra, modules in MODULES.items():
        if OPTIONAL & set(modules) - set(distributions):
            continue
        owners = {name for module in modules for name in distributions[module]} - {"sherpa-onnx-core"}  # its own half
        assert owners == names(EXTRAS[extra]) - (names(EXTRAS["asr"]) if extra != "asr" else set()), extra


def test_every_package_that_the_code_imports_is_asked_for():
    asked = {"torch", "numpy", "espnet_pinch"} | {module for modules in MODULES.values() for module in modules}
    asked |= {"lhotse", "omniio", "g2p_en", "typeguard"}  # ESPnet's, kept from running; none is needed
    for path in (ROOT / "espnet_pinch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                imported.append(node.module)
            tops = {name.partition(".")[0] for name in imported}
            assert tops <= asked | sys.stdlib_module_names, (path, tops)


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["abstract"]) == (espnet_pinch.__version__, PROJECT["description"])
    assert citation["preferred-citation"]["doi"] == "10.21437/Interspeech.2025-353"
