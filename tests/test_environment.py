"""Machines as people have them: no network, exported variables, a C locale, no home, a notebook."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typeguard
from small_models import make_model
from test_recipe import recipe  # noqa: F401  (a fixture)
from test_untrusted import work  # noqa: F401  (a fixture)

from espnet_pinch.asr.surroundings import leave_out_type_checks, put_off_g2p
from espnet_pinch.export.sparse_file import write_sparse

ROOT = Path(__file__).parents[1]
INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"  # torch sets it when imported
PROGRAMS = sorted(path.stem for path in (ROOT / "espnet_pinch" / "bin").glob("[a-z]*.py"))

# Found by Python at its start through PYTHONPATH, in every process that a program starts as well.
WATCH = """
import os, sys

def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        place = args[1] if event in ("socket.connect", "socket.sendto") else args[0]
        if isinstance(place, str) and event != "socket.getaddrinfo":
            return  # a socket of this machine's own, which has a path
        host = place[0] if isinstance(place, tuple) else place
        if host not in ("localhost", "127.0.0.1", "::1", "", None):
            with open(os.environ["WATCHED"], "a") as file:
                file.write(f"{' '.join(sys.orig_argv[1:4])}: {event} {place}\\n")

sys.addaudithook(watch)
"""

# Imports what programs share, but nothing of ESPnet's, and forks a process from there for each, as if it ran alone.
EACH = """
import os, runpy, sys
import matplotlib.pyplot, scipy.signal, torchaudio, transformers, librosa, tensorboard, jiwer, kaldiio
from transformers import AutoModelForCTC, AutoProcessor, Wav2Vec2Model, pipeline
for name in ("inflect", "hydra", "omegaconf", "h5py", "pkg_resources", "unidecode", "tacotron_cleaner.cleaners"):
    try:
        __import__(name)
    except ImportError:  # of another release of ESPnet
        pass
assert not {"espnet2", "g2p_en", "nltk"} & set(sys.modules)

def module(name):
    return lambda: runpy.run_module(name, run_name="__main__", alter_sys=True)

def python(code):
    return lambda: exec(code, {})

failed = []
for line in sys.stdin.read().splitlines():
    kind, *command = line.split("\\t")
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.orig_argv = ["python", line]
        sys.argv = command
        try:
            module(command[0])() if kind == "module" else exec(command[0], {})
        except SystemExit as end:
            os._exit(end.code or 0)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(line)
assert not failed, failed
"""

README_WAY = "import espnet_pinch.asr.task; from espnet2.bin.asr_inference import Speech2Text; Speech2Text({}, {})"


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """The environment of a user who has nothing, watched for what reaches for the network."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "NLTK", "TRANSFORMERS"))}
    home = str(tmp_path / "home")
    paths = os.pathsep.join([str(tmp_path / "watch"), str(ROOT)])
    return {**keep, "HOME": home, "NLTK_DATA": home, "PYTHONPATH": paths, "WATCHED": str(tmp_path / "watched")}


@pytest.fixture
def model(tiny_config, tmp_path) -> Path:
    write_sparse(tmp_path / "model.safetensors", make_model(tiny_config))
    return tmp_path / "model.safetensors"


def python(*arguments, env=None, **more) -> subprocess.CompletedProcess:
    options = dict(capture_output=True, text=True, env=env or {**os.environ, "PYTHONPATH": str(ROOT)})
    return subprocess.run([sys.executable, *map(str, arguments)], **{**options, **more})


def test_the_watch_sees_who_reaches_for_the_network(bare):
    python("-c", "import socket\ntry: socket.getaddrinfo('nowhere.invalid', 80)\nexcept OSError: pass", env=bare)
    assert "socket.getaddrinfo nowhere.invalid" in Path(bare["WATCHED"]).read_text()


def test_no_program_reaches_for_the_network(bare, work, model):  # noqa: F811
    folded, audio = work / "folded", work / "0.flac"
    lines = [f"module\tespnet_pinch.bin.{name}\t--help" for name in PROGRAMS if name != "asr_decode"]
    lines += [f"module\tespnet_pinch\ttranscribe\t{path}\t{audio}" for path in (model, folded / "hf")]
    lines += [f"module\tespnet_pinch\tinfo\t{model}", "module\tespnet2.bin.launch\t--help"]
    lines += [f"module\tespnet_pinch.bin.asr_decode\t--model\t{folded}\t--data\t{work}/data\t--out\t{work}/out"]
    lines += [
        f"module\tespnet_pinch.bin.prepare_dump\t--data\t{work}\t--upstream\t{folded}/hf\t--out\t{work}/dump\t"
        "--train_set\tdata\t--valid_set\tdata\t--test_sets\tdata"
    ]
    lines += ["code\t" + README_WAY.format(repr(f"{folded}/config.yaml"), repr(f"{folded}/model.pth"))]
    # Beam search imports ESPnet's decoder, and with it more of ESPnet than all others.
    lines += ["code\tfrom espnet_pinch.bin.asr_beam_search import asr_inference as run; run(['--help'], None)"]
    lines += ["code\timport espnet_pinch.export.model"]
    done = python("-c", EACH, env=bare, input="\n".join(lines))
    assert done.returncode == 0, done.stderr
    assert not Path(bare["WATCHED"]).exists(), Path(bare["WATCHED"]).read_text()


def test_g2p_is_there_for_those_who_use_it(monkeypatch, tmp_path):
    (tmp_path / "g2p_en").mkdir()
    (tmp_path / "g2p_en" / "__init__.py").write_text("G2p, loaded = 'the class', True")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "g2p_en", raising=False)
    put_off_g2p()
    import g2p_en

    assert not hasattr(g2p_en, "loaded") and g2p_en.__file__ == str(tmp_path / "g2p_en" / "__init__.py")
    assert g2p_en.G2p == "the class" and sys.modules["g2p_en"].loaded
    put_off_g2p()
    assert sys.modules["g2p_en"].loaded


def test_typeguard_checks_others_than_espnet():
    leave_out_type_checks()  # as it was done already
    results = {}
    for module in ("espnet2.asr.model", "inflect", "espnet2s_friend"):
        names = {"__name__": module}
        exec("from typeguard import typechecked, check_type", names)
        results[module] = names["typechecked"](quoted) is quoted
    assert results == {"espnet2.asr.model": True, "inflect": True, "espnet2s_friend": False}
    assert typeguard.typechecked(quoted) is not quoted and not hasattr(typeguard, "no_such_name")
    with pytest.raises(typeguard.TypeCheckError):
        typeguard.typechecked(quoted)(1)


# ---- the shell's environment

HOSTILE = {
    "POSIXLY_CORRECT": "1",
    "GREP_OPTIONS": "--color=always -v",
    "SHELLOPTS": "noglob:noclobber",
    "IFS": "/",
    "BASH_FUNC_cd%%": "() { echo elsewhere; }",
    "BASH_FUNC_log%%": "() { echo mine; }",
    "PYTHONWARNINGS": "error",
    "PYTHONIOENCODING": "ascii",
    "MPLBACKEND": "module://no.such.backend",
    **dict.fromkeys(("stage", "ngpu", "method", "python", "data", "exp", "LIBRISPEECH", "train_cmd", "PYTHON"), "mine"),
    **dict.fromkeys(("inputs", "launch", "run", "upstream", "options", "status", "name", "called_from"), "mine"),
}


def recipe_from(cwd: Path, recipe: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:  # noqa: F811
    """The recipe called from another folder, by a relative path."""
    command = ["bash", os.path.relpath(recipe / "run.sh", cwd), "--python", sys.executable, *options]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.fixture
def trap(recipe, tmp_path) -> Path:  # noqa: F811
    """A folder to stand in, and a CDPATH that has the same folders elsewhere."""
    (tmp_path / "elsewhere" / "egs" / "librispeech_100").mkdir(parents=True)
    for name in ("conf", "utils", "local"):
        (tmp_path / "elsewhere" / name).mkdir()
    return tmp_path / "elsewhere"


def test_what_a_user_has_exported_changes_nothing(recipe, trap, tmp_path):  # noqa: F811
    (tmp_path / "start.sh").write_text("set -f; cd() { echo elsewhere; }; die() { echo mine; }\n")
    hostile = {**HOSTILE, "CDPATH": str(trap), "BASH_ENV": str(tmp_path / "start.sh")}
    root = recipe.parents[1]
    options = ("--upstream", "mini", "--stage", "4", "--target_sparsity", "0.5")
    done = recipe_from(root, recipe, *options, **hostile)
    line = "error: dump/librispeech_100/mini/raw/dump.done is missing: run stage 2 first (./run.sh --stage 2)"
    assert (done.returncode, done.stderr.splitlines()) == (1, [line])
    assert done.stdout.endswith("stage 4: training\n") and len(done.stdout.splitlines()) == 1
    done = recipe_from(root, recipe, "--upstream", "none", **hostile)
    assert "there is: hubert_large micro mini" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", [".ci/run", "Makefile"])
def test_make_and_ci_do_not_follow_cdpath(script, tmp_path):
    for name in (".ci", "egs/mini", "else/egs/mini", "else/.ci/..", ".venv"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv" / "installed").touch()
    (tmp_path / "egs" / "mini" / "run.sh").write_text("#!/bin/sh\necho right\n")
    (tmp_path / "egs" / "mini" / "run.sh").chmod(0o755)
    (tmp_path / "make").write_text('#!/bin/sh\necho "$PWD $*"\n')
    (tmp_path / "make").chmod(0o755)
    # These tests may run under a make of their own, whose child would say where it is.
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    environment = {**outside, "CDPATH": str(tmp_path / "else"), "PYTHON": "python2"}
    if script == "Makefile":
        done = subprocess.run(["make", "demo"], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1:] == ["right"] and "else" not in done.stdout, done.stderr
    else:
        environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.stdout == f"{tmp_path} test\n{tmp_path} test-312\n" and done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "given, meant",
    [
        ([], "exp/librispeech_100"),
        (["--expdir", "mine"], "{cwd}/mine/librispeech_100"),
        (["--expdir=~/mine"], "{home}/mine/librispeech_100"),
        (["--expdir", "{recipe}/exp"], "exp/librispeech_100"),
        (["--expdir", "../{cwd.name}/./mine/"], "{cwd}/mine/librispeech_100"),
        (["--config", "own.sh"], "{cwd}/from_file/librispeech_100"),
        (["--config", "~/own.sh"], "{cwd}/from_home/librispeech_100"),
        (["--expdir", "~nobody_of_that_name/mine"], "{cwd}/~nobody_of_that_name/mine/librispeech_100"),
    ],
)
def test_paths_are_seen_from_where_the_user_stands(recipe, tmp_path, given, meant):  # noqa: F811
    cwd, home = tmp_path / "stand here", tmp_path / "home"
    for folder, value in ((cwd, "from_file"), (home, "from_home")):
        folder.mkdir()
        (folder / "own.sh").write_text(f"expdir={value}\n")
    names = dict(cwd=cwd, home=home, recipe=recipe)
    given = [word.format(**names) for word in given]
    environment = {"HOME": str(home), "CDPATH": str(tmp_path)}
    done = recipe_from(cwd, recipe, *given, "--print_exp", "true", **environment)
    assert (done.stdout, done.stderr) == (meant.format(**names) + "\n", "")


def test_a_corpus_and_a_yaml_are_found_from_where_the_user_stands(recipe, tmp_path):  # noqa: F811
    (tmp_path / "models").mkdir()
    (tmp_path / "own.yaml").write_text("frontend_conf: {upstream: '~/models'}\n")
    options = ["--asr_config", "own.yaml", "--librispeech", os.path.relpath(recipe.parents[1] / "corpus", tmp_path)]
    done = recipe_from(tmp_path, recipe, *options, "--stage", "2", "--stop_stage", "2", HOME=str(tmp_path))
    assert done.returncode == 1 and "check.done is missing: run stage 1 first" in done.stderr
    assert "data/corpus_" in done.stderr
    done = recipe_from(tmp_path, recipe, "--upstream", "mini", "--librispeech", "new\nline")
    assert done.stderr.startswith("error: --librispeech must not have a new line")


@pytest.mark.parametrize(
    "options, environment, message",
    [
        (["--ngpu", "1000"], {}, "--ngpu 1000: this machine has .* GPUs that torch can use"),
        (["--gpu_inference", "true"], {"CUDA_VISIBLE_DEVICES": ""}, "--gpu_inference true: this machine has 0 GPUs"),
    ],
)
def test_gpus_that_are_not_there_are_refused_before_stage_0(recipe, options, environment, message):  # noqa: F811
    done = recipe_from(recipe, recipe, "--upstream", "mini", *options, **environment)
    assert done.returncode == 1 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and re.search(message, line)


def test_gpus_are_not_asked_for_where_they_are_not_used(recipe):  # noqa: F811
    options = ("--ngpu", "1000", "--gpu_inference", "true", "--stage", "3", "--stop_stage", "3")
    done = recipe_from(recipe, recipe, "--upstream", "mini", *options)
    assert "run stage 2 first" in done.stderr


def quoted(text: str) -> str:
    """What pinch.sh hands to an option of ESPnet's."""
    script = (ROOT / "local" / "pinch.sh").read_text()
    function = script[script.index("quoted() {") :].split("\n}\n")[0] + "\n}\n"
    return subprocess.run(["bash", "-c", function + 'quoted "$1"', "bash", text], capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "path", ["a #b", "a: b", "a, b", "it's", 'say "so"', "back\\slash", "{a}", "[a", "yes", "1", "*", "é"]
)
def test_any_path_reaches_espnet_whole(path):
    from espnet_pinch.asr.task import PruningASRTask

    args = PruningASRTask.get_parser().parse_args(["--frontend_conf", f"upstream={quoted(path)}"])
    assert args.frontend_conf == {"upstream": path}


# ---- Python's environment


def no_privileges() -> None:
    """Root too is then bound by the permissions of files. Of a process that is about to start a program."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_a_read_only_installation_without_a_home_transcribes_in_a_c_locale(model, tmp_path):
    shutil.copytree(ROOT / "espnet_pinch", tmp_path / "site" / "espnet_pinch", ignore=shutil.ignore_patterns("__py*"))
    for folder in [tmp_path / "site", *(p for p in (tmp_path / "site").rglob("*") if p.is_dir())]:
        folder.chmod(0o555)
    audio = tmp_path / "ü, ж.wav"
    soundfile.write(audio, np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "XDG", "NUMBA", "MPL"))}
    environment = {**keep, "PYTHONPATH": str(tmp_path / "site"), "HOME": "/nonexistent", "LC_ALL": "C"}
    environment.update(PYTHONUTF8="0", PYTHONIOENCODING="ascii", MPLBACKEND="module://no.such.backend")
    code = "from espnet_pinch.cli import main_program; main_program()"
    command = ("-c", code, "transcribe", model, audio)
    done = python(*command, env=environment, preexec_fn=no_privileges, text=False)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    assert done.stdout.startswith(f"{audio}\t".encode())
    (tmp_path / "exp ж").mkdir()
    command = ("-m", "espnet_pinch.bin.report", "--exp", tmp_path / "exp ж")
    done = python(*command, env=environment, preexec_fn=no_privileges, text=False)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    assert done.stdout.decode().startswith(f"{tmp_path}/exp ж/report/RESULTS.md: 0 finished runs")
    assert (tmp_path / "exp ж" / "report" / "images" / "figure2_wav2vec2_base.png").stat().st_size > 10_000


def test_a_user_without_a_name_can_train(tmp_path):
    """As in a container that was started with a number for a user; torch wants the name for a folder's."""
    command = ["unshare", "--user", "--map-user=12345"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    keep = {k: v for k, v in os.environ.items() if k not in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", INDUCTOR)}
    code = "import espnet_pinch.asr.upstream; import torch._dynamo; print(torch._dynamo.package.cache_dir())"
    done = subprocess.run(
        [*command, sys.executable, "-c", code], capture_output=True, text=True, env={**keep, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0 and done.stdout.endswith("torchinductor_12345\n"), done.stderr


def test_pictures_leave_the_callers_backend_alone(tmp_path):
    code = """if True:
        import matplotlib
        from espnet_pinch.core.parameters import LayerCount
        from espnet_pinch.results.plots import plot_layers
        plot_layers({"layers.0.attention.q_proj": LayerCount(weights=4, pruned=1)}, "layers")
        assert matplotlib.rcParams._get("backend") == "module://no.such.backend"
        """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "module://no.such.backend"}
    done = python("-c", code, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
