"""Wrong files and flags, and the one message that each of them earns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from wrong_flags import AUGMENT_POLICIES, DATASETS, FILLS, FLAGS, OPTIM_KEYS, PLACES, PLAIN, SUBSET_KEYS, WHOLE

from rlpheads.engine.config.command_line import ConfigError, parse_config

YAML_VALUES = [
    # unknown keys
    ("epohcs: 3", "epohcs: no such key; nearest: epochs"),
    ("optim: {lrr: 1.0}", "optim.lrr: no such key; nearest: optim.lr"),
    ("lr: 1.0", "lr: no such key; nearest: heads.optim.lr, optim.lr"),
    ("zzz: 1", "zzz: no such key; --help lists every key"),
    ("<<: {epochs: 1}", "<<: no such key; --help lists every key"),
    ("optim.lr: 1.0", "optim.lr: a dotted key; allowed in a file: nested keys, optim: {lr: …}"),
    ("heads.optim.lr: 1.0", "heads.optim.lr: a dotted key; allowed in a file: nested keys, heads: {optim: {lr: …}}"),
    # groups
    ("optim: 5", f"optim: got 5, but this is a group; allowed: the keys in it: {OPTIM_KEYS}"),
    ("optim:", f"optim: got null, but this is a group; allowed: the keys in it: {OPTIM_KEYS}"),
    ("optim: [1]", f"optim: got [1], but this is a group; allowed: the keys in it: {OPTIM_KEYS}"),
    # whole numbers
    ("epochs: ten", f"epochs: got 'ten'; allowed: {WHOLE}"),
    ("epochs: '5'", f"epochs: got '5'; allowed: {WHOLE}"),
    ("epochs: 10.0", f"epochs: got 10.0; allowed: {WHOLE}"),
    ("epochs: 1e1", f"epochs: got 10.0; allowed: {WHOLE}"),
    ("epochs: true", f"epochs: got true; allowed: {WHOLE}"),
    ("epochs: null", f"epochs: got null; allowed: {WHOLE}"),
    ("epochs:", f"epochs: got null; allowed: {WHOLE}"),
    ("epochs: .inf", f"epochs: got inf; allowed: {WHOLE}"),
    ("epochs: 010", f"epochs: got '010'; allowed: {WHOLE}"),
    ("epochs: 1:30", f"epochs: got '1:30'; allowed: {WHOLE}"),
    ("epochs: 2024-01-01", f"epochs: got '2024-01-01'; allowed: {WHOLE}"),
    ("epochs: [5]", f"epochs: got [5]; allowed: {WHOLE}"),
    ("epochs: {value: 5}", f"epochs: got {{'value': 5}}; allowed: {WHOLE}"),
    ("max_steps: 1.5", f"max_steps: got 1.5; allowed: {WHOLE} or null"),
    # numbers
    ("optim: {lr: .inf}", "optim.lr: got inf; allowed: a finite number"),
    ("optim: {lr: -.inf}", "optim.lr: got -inf; allowed: a finite number"),
    ("optim: {lr: .nan}", "optim.lr: got nan; allowed: a finite number"),
    ("optim: {lr: 1e999}", "optim.lr: got inf; allowed: a finite number"),
    ("optim: {lr: inf}", "optim.lr: got 'inf'; allowed: a finite number"),
    ("optim: {lr: null}", "optim.lr: got null; allowed: a finite number"),
    ("optim: {lr: '1e-3'}", "optim.lr: got '1e-3'; allowed: a finite number"),
    ("optim: {lr: true}", "optim.lr: got true; allowed: a finite number"),
    ("optim: {clip_norm: .nan}", "optim.clip_norm: got nan; allowed: a finite number or null"),
    # switches and text
    ("verbose: 1", "verbose: got 1; allowed: true or false"),
    ("verbose: yes", "verbose: got 'yes'; allowed: true or false"),
    ("verbose: 'true'", "verbose: got 'true'; allowed: true or false"),
    ("run: {name: 5}", "run.name: got 5; allowed: text"),
    ("run: {name: null}", "run.name: got null; allowed: text"),
    ("data: {root: true}", "data.root: got true; allowed: text or null"),
    # choices
    ("data: {dataset: digit}", f"data.dataset: got 'digit'; allowed: {DATASETS} (nearest: digits)"),
    ("data: {dataset: CIFAR100}", f"data.dataset: got 'CIFAR100'; allowed: {DATASETS} (nearest: cifar100)"),
    ("data: {dataset: null}", f"data.dataset: got null; allowed: {DATASETS}"),
    (
        "data: {augment: {erase_fill: colour}}",
        f"data.augment.erase_fill: got 'colour'; allowed: {FILLS} (nearest: color)",
    ),
    ("data: {augment: {policy: randaugment}}", f"data.augment.policy: got 'randaugment'; allowed: {AUGMENT_POLICIES}"),
    (
        "data: {augment: {policy: rand-m9}}",
        f"data.augment.policy: got 'rand-m9'; allowed: {AUGMENT_POLICIES} (nearest: rand)",
    ),
    ("data: {augment: {cutout: 0.5}}", f"data.augment.cutout: got 0.5; allowed: {WHOLE}"),
    ("data: {subset: 0.1}", "data.subset: got 0.1, but this is a group; allowed: the keys in it: " + SUBSET_KEYS),
    ("precision: FP32", "precision: got 'FP32'; allowed: fp32, bf16 or fp16 (nearest: fp32)"),
    # lists
    (
        "heads: {taps: al}",
        f"heads.taps: got 'al'; allowed: {PLACES} (nearest: all)",
    ),
    ("heads: {taps: 3}", f"heads.taps: got 3; allowed: {PLACES}"),
    (
        "heads: {taps: [0, 1.0]}",
        f"heads.taps: got [0, 1.0]; allowed: {PLACES}",
    ),
    ("heads: {taps: [true]}", f"heads.taps: got [True]; allowed: {PLACES}"),
    (
        "regularizer: {taps: none}",
        "regularizer.taps: got 'none'; allowed: all or a list of whole numbers and texts such as [0, 3.attn]",
    ),
    ("data: {crop_scale: 0.3}", "data.crop_scale: got 0.3; allowed: a list of 2 finite numbers"),
    ("data: {crop_scale: [0.3]}", "data.crop_scale: got [0.3]; allowed: a list of 2 finite numbers"),
    ("data: {mean: [0, 0, .nan]}", "data.mean: got [0, 0, nan]; allowed: a list of 3 finite numbers"),
    # free-form mappings
    ("model: {args: 3}", f"model.args: got 3; allowed: {PLAIN}"),
    ("model: {args: [depth]}", f"model.args: got ['depth']; allowed: {PLAIN}"),
    ("model: {args: {depth: .inf}}", f"model.args: got {{'depth': inf}}; allowed: {PLAIN}"),
]

YAML_SYNTAX = [
    ("epochs: 1\nepochs: 2", "line 2: the key 'epochs' is given twice"),
    ("optim: {lr: 1.0, lr: 2.0}", "line 1: the key 'lr' is given twice"),
    ("optim:\n  lr: 1.0\n  lr: 1.0", "line 3: the key 'lr' is given twice"),
    ("epochs: 1\nheads: [1", "line 2: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
    ("epochs: 1: 2", "line 1: mapping values are not allowed here"),
    (
        "epochs: 1\n\tbatch_size: 2",
        "line 2: while scanning for the next token, found character '\\t' that cannot start any token",
    ),
    ("epochs: &n 1\nbatch_size: *n", "line 2: aliases (*name) are not accepted"),
    ("run: {name: !!python/name:os.getcwd }", "line 1: tags (!name) are not accepted"),
    ("1: 2", "line 1: a key must be text, got 1"),
    ("null: 2", "line 1: a key must be text, got null"),
    ("epochs: 1\nrun: {name: a\x00b}", "line 2: the character U+0000 is not allowed in YAML"),
    ("epochs: 1\n---\nepochs: 2", "line 2: expected a single document in the stream, but found another document"),
    (f"epochs: {'9' * 5000}", "a whole number of thousands of digits"),
    ("[" * 5000, "nested too deeply"),
]

TOML_VALUES = [
    ("subLabels = '10'", f"subLabels: got '10'; allowed: {WHOLE} or auto"),
    ("ViTSize = 'XL'", "ViTSize: got 'XL'; allowed: S, B or L (nearest: L)"),
    ("contin = 1", "contin: got 1; allowed: true or false"),
    ("truncate = 'yes'", "truncate: got 'yes'; allowed: true or false"),
    ("labelNoise = true", "labelNoise: got true; allowed: a finite number"),
    ("[optim]\nreg = 1.0", "optim.reg: no such key; nearest: optim.args"),
    ("epohcs = 3", "epohcs: no such key; nearest: epochs"),
    ("epochs = '5'", f"epochs: got '5'; allowed: {WHOLE}"),
    ("epochs = 10.0", f"epochs: got 10.0; allowed: {WHOLE}"),
    ("epochs = 2024-01-01", f"epochs: got datetime.date(2024, 1, 1); allowed: {WHOLE}"),
    ("verbose = 'yes'", "verbose: got 'yes'; allowed: true or false"),
    ("optim.lr = inf", "optim.lr: got inf; allowed: a finite number"),
    ("optim.lr = nan", "optim.lr: got nan; allowed: a finite number"),
    ("[optim]\nlr = true", "optim.lr: got true; allowed: a finite number"),
    ("[[optim]]\nlr = 1", f"optim: got [{{'lr': 1}}], but this is a group; allowed: the keys in it: {OPTIM_KEYS}"),
]

TOML_SYNTAX = [
    ("epochs = 1\nepochs = 2\n", "Cannot overwrite a value (at line 2, column 11)"),
    ("epochs = \n", "Invalid value (at line 1, column 10)"),
    ("epochs: 1\n", "Expected '=' after a key in a key/value pair (at line 1, column 7)"),
    (f"epochs = {'9' * 5000}", "a whole number of thousands of digits"),
    ("epochs = " + "[" * 5000, "nested too deeply"),
]


def short(case: object) -> str:
    return str(case)[:40]


def message(argv: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(argv)
    return str(caught.value)


@pytest.mark.wrong("config")
@pytest.mark.parametrize(("text", "complaint"), YAML_VALUES, ids=short)
def test_wrong_value_in_yaml(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert message(["--config", str(file)]) == f"{file}: {complaint}"


@pytest.mark.wrong("config")
@pytest.mark.parametrize(("text", "complaint"), YAML_SYNTAX, ids=short)
def test_bad_yaml_names_file_and_line(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "run.yml"
    file.write_text(text)
    assert message(["--config", str(file)]) == f"{file}: not valid YAML: {complaint}"


@pytest.mark.wrong("config")
@pytest.mark.parametrize(("text", "complaint"), TOML_VALUES, ids=short)
def test_wrong_value_in_toml(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert message(["--config", str(file)]) == f"{file}: {complaint}"


@pytest.mark.wrong("config")
@pytest.mark.parametrize(("text", "complaint"), TOML_SYNTAX, ids=short)
def test_bad_toml_names_file_and_line(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert message(["--config", str(file)]) == f"{file}: not valid TOML: {complaint}"


@pytest.mark.wrong("config")
@pytest.mark.parametrize(("argv", "complaint"), FLAGS, ids=short)
def test_wrong_flag(argv: list[str], complaint: str) -> None:
    assert message(argv) == complaint


@pytest.mark.wrong("config")
@pytest.mark.parametrize("suffix", ["yaml", "toml"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"# only a comment\n", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"run.{suffix}"
    file.write_bytes(content)
    assert (
        message(["--config", str(file)]) == f"{file}: the file is empty; allowed: keys and values, such as epochs: 90"
    )


@pytest.mark.wrong("config")
@pytest.mark.parametrize(("text", "given"), [("- 1\n- 2", "[1, 2]"), ("90", "90"), ("just text", "'just text'")])
def test_top_level_must_be_a_mapping(tmp_path: Path, text: str, given: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    expected = f"{file}: got {given} at the top level; allowed: keys and values, such as epochs: 90"
    assert message(["--config", str(file)]) == expected


@pytest.mark.wrong("config")
def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes("run: {name: é}".encode("latin-1"))
    assert message(["--config", str(file)]) == f"{file}: not UTF-8 text (byte 12)"


@pytest.mark.wrong("config")
def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "digits_vit.yaml").write_text("epochs: 3")
    wrong = tmp_path / "digit_vit.yaml"
    assert message(["--config", str(wrong)]) == f"{wrong}: no such file; nearest: {tmp_path / 'digits_vit.yaml'}"


@pytest.mark.wrong("config")
def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "configs.yaml"
    folder.mkdir()
    assert message(["--config", str(folder)]) == (
        f"{folder}: this is a folder; allowed: a file that ends in .yaml, .yml, .toml"
    )


@pytest.mark.wrong("config")
def test_long_values_are_cut_in_messages() -> None:
    assert message(["--epochs", "9" * 40 + "x" * 4000]) == f"--epochs: got '{'9' * 40}{'x' * 258}…; allowed: {WHOLE}"


@pytest.mark.wrong("config")
def test_deeply_nested_free_form_value_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: {args: {a: " + "[" * 40 + "]" * 40 + "}}")
    assert message(["--config", str(file)]).endswith(f"allowed: {PLAIN}")


def test_nothing_given_where_configs_are_not_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installed package has no configs/ beside it."""
    monkeypatch.setattr("rlpheads.engine.config.command_line._DEFAULT", tmp_path / "cifar100_wrn.yaml")
    expected = f"no configuration given, and there is no {tmp_path / 'cifar100_wrn.yaml'} to read; allowed: torchrun"
    assert message([]).startswith(expected)


@pytest.mark.wrong("config")
@pytest.mark.parametrize("suffix", [".yaml", ".toml"])
def test_a_large_file_is_refused_unread(tmp_path, suffix):
    path = tmp_path / f"keys{suffix}"
    path.touch()
    os.truncate(path, 2**38)  # more than fits into memory, of which none is on the disk
    assert (
        message(["--config", str(path)])
        == f"{path}: the file has more than 262,144 bytes, which no configuration needs"
    )


@pytest.mark.timeout(30)
@pytest.mark.wrong("config")
def test_a_pipe_or_a_device_is_no_configuration_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    pipe, zero = tmp_path / "pipe.yaml", tmp_path / "zero.yaml"
    assert (
        message(["--config", str(pipe)]) == f"{pipe}: this is a pipe; allowed: a file that ends in .yaml, .yml, .toml"
    )
    assert message(["--config", str(zero)]).startswith(f"{zero}: the file has more than 262,144 bytes")
