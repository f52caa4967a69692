"""Files from others: whatever a pickle, an archive, a YAML or a model's folder asks for, no code in it is run."""

import io
import json
import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from espnet_pinch.asr.checkpoint import write_folded
from espnet_pinch.asr.head import ASR, find_head
from espnet_pinch.asr.task import PruningASRTask
from espnet_pinch.asr.upstream import load_upstream
from espnet_pinch.bin import asr_beam_search, asr_decode, asr_train, check_config, fold, run_main
from espnet_pinch.core.methods.mixed_sparsity import read_layer_sparsities
from espnet_pinch.data.audio import omniio, read_audio
from espnet_pinch.data.kaldi_dir import Utterance, write_data_dir
from espnet_pinch.data.tokens import write_tokens
from espnet_pinch.export.check import Probe
from espnet_pinch.export.formats.espnet import check_packed, write_packed

ROOT = Path(__file__).parents[1]
REFUSED = "holds (posix|nt).system, which is not a tensor, number or text and could run code: refused"


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.fixture
def trap(tmp_path):
    """What leaves the file that must not be there at the end of the test."""
    path = tmp_path / "touched"
    assert pickle.loads(pickle.dumps(Touch(path))) == 0 and path.exists()  # the trap works
    path.unlink()
    yield Touch(path)
    assert not path.exists(), "code out of the file was run"


@pytest.fixture
def work(tmp_path, tiny_config) -> Path:
    """An upstream, data of three utterances of noise, a token list, and a folded model."""
    Wav2Vec2Model(Wav2Vec2Config(**tiny_config)).save_pretrained(tmp_path / "upstream")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "upstream")
    rows = []
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.flac", np.random.default_rng(i).normal(0, 0.1, 9600), 16000)
        rows.append(Utterance(f"a-{i}", str(tmp_path / f"{i}.flac"), "AB", "a", 9600))
    write_data_dir(tmp_path / "data", rows)
    write_tokens(tmp_path / "tokens.txt", ["<blank>", "<unk>", "<space>", "A", "B", "<sos/eos>"])
    args = PruningASRTask.get_parser().parse_args([*options(tmp_path), "--output_dir", str(tmp_path / "exp")])
    write_folded(PruningASRTask.build_model(args).eval(), plain(args), tmp_path / "folded")
    return tmp_path


def plain(args):
    for key in ("config", "required", "print_config"):
        vars(args).pop(key)
    return args


def options(work: Path, kind="sound") -> list[str]:
    data = []
    for name in ("train", "valid"):
        data += [f"--{name}_data_path_and_name_and_type", f"{work}/data/wav.scp,speech,{kind}"]
        data += [f"--{name}_data_path_and_name_and_type", f"{work}/data/text,text,text"]
        data += [f"--{name}_shape_file", f"{work}/data/utt2num_samples"]
    return [
        *("--config", str(ROOT / "conf" / "mini.yaml"), "--frontend_conf", f"upstream={work}/upstream", *data),
        *("--token_list", f"{work}/tokens.txt", "--batch_size", "2", "--max_epoch", "1", "--resume", "true"),
    ]


@pytest.fixture
def error_of(monkeypatch, capsys):
    """The one line that a program leaves on stderr, besides what ESPnet says before it starts."""

    def run(program, *command: str) -> str:
        monkeypatch.setattr(sys, "argv", ["program", *command])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_main(program)
        assert stopped.value.code == 1
        printed = capsys.readouterr().err
        [line] = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in printed
        return line

    return run


@pytest.fixture
def train_error(work, error_of):
    def run(*more: str, kind="sound") -> str:
        return error_of(asr_train.main, *options(work, kind), "--output_dir", str(work / "exp"), *more)

    return run


def matches(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


@pytest.mark.parametrize("sharded", [False, True])
def test_an_upstream_in_a_pickle(sharded, work, trap):
    (work / "upstream" / "model.safetensors").unlink()
    name = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    torch.save({"encoder.layer_norm.weight": trap}, work / "upstream" / name)
    if sharded:
        index = {"metadata": {}, "weight_map": {"encoder.layer_norm.weight": name}}
        (work / "upstream" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"{name} {REFUSED}"):
        load_upstream(str(work / "upstream"))


@pytest.mark.parametrize("model_type", ["own", "wav2vec2"])
def test_an_upstream_that_brings_code(model_type, work, trap, monkeypatch):
    config = json.loads((work / "upstream" / "config.json").read_text())
    config.update(model_type=model_type, auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"})
    (work / "upstream" / "config.json").write_text(json.dumps(config))
    (work / "upstream" / "own.py").write_text(f"import os\nos.system('touch {trap.path}')\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))  # nobody is asked whether to run it
    if model_type == "own":
        with pytest.raises(ValueError, match="upstream is not a model of type wav2vec2, .*contains custom code"):
            load_upstream(str(work / "upstream"))
    else:
        load_upstream(str(work / "upstream"))


def test_nothing_lets_a_model_run_its_code():
    for path in (ROOT / "espnet_pinch").rglob("*.py"):
        assert "trust_remote_code=True" not in path.read_text() and "weights_only=False" not in path.read_text(), path


def test_folding_and_decoding_a_checkpoint(work, trap, error_of):
    torch.save({"ctc.ctc_lo.bias": trap}, work / "folded" / "model.pth")
    line = error_of(fold.main, "--exp", str(work / "folded"), "--checkpoint", "model.pth")
    matches(f"model.pth {REFUSED}", line)
    decode = ("--model", str(work / "folded"), "--data", str(work / "data"), "--out", str(work / "out"))
    matches(f"model.pth {REFUSED}", error_of(asr_decode.main, *decode))


def beam_search(work, kind):
    command = ["--asr_train_config", f"{work}/folded/config.yaml", "--asr_model_file", f"{work}/folded/model.pth"]
    command += ["--data_path_and_name_and_type", f"{work}/data/wav.scp,speech,{kind}", "--output_dir", f"{work}/out"]
    command += ["--config", str(ROOT / "conf" / "decode_beam.yaml")]
    asr_beam_search.asr_inference(command, multiprocessing.Value("i"))


def test_beam_search_and_the_packed_zip(work, trap, error_of):
    torch.save({"ctc.ctc_lo.bias": trap}, work / "folded" / "model.pth")
    matches(f"model.pth {REFUSED}", error_of(lambda: beam_search(work, "sound")))
    write_packed(work / "espnet.zip", work / "folded")
    with pytest.raises(ValueError, match=REFUSED):
        check_packed(work / "espnet.zip", Probe([], [], [], [], [], 0, find_head(ASR)))


def test_training_from_other_weights_or_a_checkpoint(work, trap, train_error):
    torch.save({"ctc.ctc_lo.bias": trap}, work / "other.pth")
    matches(f"other.pth {REFUSED}", train_error("--init_param", f"{work}/other.pth"))
    (work / "exp" / "settings.json").unlink()  # of other options
    torch.save({"model": trap}, work / "exp" / "checkpoint.pth")
    matches(f"checkpoint.pth {REFUSED}", train_error())


def test_the_mean_of_checkpoints(work, trap, train_error):
    asr_train.main([*options(work), "--output_dir", str(work / "exp"), "--max_epoch", "2", "--keep_nbest_models", "2"])
    for path in (work / "exp").glob("*.ave*"):
        path.unlink()
    torch.save({"ctc.ctc_lo.bias": trap}, work / "exp" / "1epoch.pth")  # finished: nothing is left but the mean
    matches(f"1epoch.pth {REFUSED}", train_error("--max_epoch", "2", "--keep_nbest_models", "2"))


def test_an_archive_of_audio(work, trap, train_error, error_of):
    (work / "a.ark").write_bytes(b"PKL" + pickle.dumps(trap))
    with pytest.raises(ValueError, match="a.ark:0: .*a pickle.*refused"):
        read_audio(f"{work}/a.ark:0")
    with pytest.raises(OSError, match="does not exist"):
        read_audio(f"touch {trap.path}; cat {work}/a.ark:0 |")
    for entry in (f"{work}/a.ark:0", f"touch {trap.path} |"):
        (work / "data" / "wav.scp").write_text("".join(f"a-{i} {entry}\n" for i in range(3)))
        line = train_error("--num_workers", "0", kind="kaldi_ark")
        if omniio is None or entry.endswith("|"):  # omniio, which ESPnet 202611 reads with, knows no pickles
            matches("a pickle, or a wav.scp holds a command.*refused", line)
        else:
            matches("an audio archive is damaged", line)


def test_an_archive_that_beam_search_reads(work, trap, error_of):
    (work / "a.ark").write_bytes(b"PKL" + pickle.dumps(trap))
    (work / "data" / "wav.scp").write_text(f"a-0 {work}/a.ark:0\n")
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)  # as in a job, whose processes inherit no guard
    try:
        line = error_of(lambda: beam_search(work, "kaldi_ark"))
    finally:
        multiprocessing.set_start_method(usual, force=True)
    matches("could run code: refused" if omniio is None else "an audio archive is damaged", line)


def test_numpy_statistics(work, trap, train_error):
    np.save(work / "stats.npy", np.array([trap], dtype=object), allow_pickle=True)
    line = train_error("--normalize", "global_mvn", "--normalize_conf", f"stats_file={work}/stats.npy")
    matches("allow_pickle=False", line)


def test_yaml(work, trap, error_of, monkeypatch):
    bad = f"frontend_conf: {{upstream: mini}}\nseed: !!python/object/apply:os.system [touch {trap.path}]\n"
    (work / "own.yaml").write_text(bad)
    matches("own.yaml is not YAML", error_of(check_config.main, "--config", str(work / "own.yaml")))
    for program, command in (
        (asr_train.main, [*options(work), "--config", str(work / "own.yaml"), "--output_dir", str(work / "exp")]),
        (fold.main, ["--exp", str(work / "folded"), "--checkpoint", "model.pth"]),
    ):
        (work / "folded" / "config.yaml").write_text(bad)
        monkeypatch.setattr(sys, "argv", ["program", *command])
        with pytest.raises((yaml.YAMLError, SystemExit)):
            run_main(program)


@pytest.mark.parametrize(
    "layers", ["[]", '{"a": 1}', '{"a": {"weights": 0, "pruned": 0}}', '{"a": {"weights": 1, "pruned": 7}}', "pickle"]
)
def test_layer_sparsities(layers, work, trap):
    path = work / "parameters.json"
    path.write_bytes(pickle.dumps(trap) if layers == "pickle" else f'{{"layers": {layers}}}'.encode())
    with pytest.raises(ValueError, match="is not the parameters.json of a folded run"):
        read_layer_sparsities(str(path))
