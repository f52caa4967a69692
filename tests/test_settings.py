"""The list of all settings: it is a YAML of the defaults, and says what each means."""

import dataclasses

import yaml

from espnet_pinch.asr.distill import DistillSettings
from espnet_pinch.bin import list_settings
from espnet_pinch.core.mixed_bits import build_quantization
from espnet_pinch.core.quantize import QuantizeSettings
from espnet_pinch.core.registry import all_methods, build_method


def test_the_list_is_a_yaml_of_the_defaults(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["list_settings"])
    list_settings.main()
    blocks = yaml.safe_load(capsys.readouterr().out)
    assert blocks.keys() == {"pruning", "distill", "quantize"}
    assert build_quantization(blocks["quantize"]).settings == QuantizeSettings()
    assert DistillSettings.of(blocks["distill"]) == DistillSettings()
    for name, method in all_methods().items():
        assert (blocks["pruning"].get(name) or {}).keys() == method.own_settings
        if method.from_run is None:
            built = build_method({**blocks["pruning"], "method": name})
            assert built.settings == method.build.settings_class()


def test_every_setting_has_a_meaning():
    of_methods = [method.build.settings_class for method in all_methods().values()]
    for settings in (*of_methods, DistillSettings, QuantizeSettings):
        meanings = list_settings.meanings_of(settings)
        assert meanings.keys() == {field.name for field in dataclasses.fields(settings)}
        assert all(len(meaning) > 10 and "None" not in meaning for meaning in meanings.values())
