"""Whose fault an error is: a mistake of the program shows its traceback wherever it is made, a user's is one line."""

import numpy as np
import pytest
import soundfile
from small_models import make_model

from espnet_pinch.bin import run_main
from espnet_pinch.data.librispeech import read_subset
from espnet_pinch.errors import UserError
from espnet_pinch.export.long_audio import transcribe_file
from espnet_pinch.export.sparse_file import write_sparse
from espnet_pinch.results.scoring import error_rates


def mistake(*_, **__):
    return np.zeros(3) + np.zeros(4)


def test_a_mistake_of_the_program_is_no_line_of_the_users(capsys):
    with pytest.raises(ValueError, match="operands could not be broadcast"):
        run_main(mistake)
    assert "error:" not in capsys.readouterr().err

    def users():
        raise UserError("what is wrong")

    with pytest.raises(SystemExit) as end:
        run_main(users)
    assert end.value.code == 1 and capsys.readouterr().err == "error: what is wrong\n"


def corpus(tmp_path):
    chapter = tmp_path / "dev-clean" / "1" / "2"
    chapter.mkdir(parents=True)
    (chapter / "1-2.trans.txt").write_text("1-2-0 A\n")
    soundfile.write(chapter / "1-2-0.flac", np.zeros(800), 16000)
    return tmp_path


def sound(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    return tmp_path / "a.wav"


ROOMS = {
    "espnet_pinch.data.check_dir.hashlib.md5": lambda path, model: read_subset(corpus(path), "dev-clean", 1),
    "espnet_pinch.export.sparse_file.encode": lambda path, model: write_sparse(path / "m.safetensors", model),
    "espnet_pinch.export.sparse_file.describe": lambda path, model: write_sparse(path / "m.safetensors", model),
    "espnet_pinch.sound.read.np.isfinite": lambda path, model: transcribe_file(model, sound(path)),
    "espnet_pinch.export.long_audio.resample": lambda path, model: transcribe_file(model, sound(path)),
    "espnet_pinch.alignment.align": lambda path, model: error_rates([("A B", "A")]),
}


@pytest.mark.parametrize("place", ROOMS)
def test_a_mistake_planted_in_any_room_keeps_its_type(place, tiny_config, tmp_path, monkeypatch):
    model = make_model(tiny_config)
    monkeypatch.setattr(place, mistake)
    with pytest.raises(ValueError, match="operands could not be broadcast") as caught:
        ROOMS[place](tmp_path, model)
    assert not isinstance(caught.value, UserError)
