"""The reference system's command lines and parameter files still run: every option, and its four commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.help import help_text
from rlpheads.engine.config.reference_names import REFERENCE_NAMES
from rlpheads.engine.config.schema import Config

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
SECOND = f"--subLabels 100000 --verbose --ifile {CONFIGS / 'ImageNet_ViT_adam.toml'} --epochs 10 --batchSize 2"
FLAGS = [
    ("--subLabels 100000", "heads.labels", 100_000),
    ("--regFactor 0.5", "regularizer.factor", 0.5),
    ("--reg 1e3", "regularizer.factor", 1000.0),
    ("--epochs 7", "epochs", 7),
    ("--batchSize 64", "batch_size", 64),
    ("--model WRN", "model.name", "wrn_16_4"),
    ("--model ViT", "model.name", "vit_base_patch32_224"),
    ("--model ViT --ViTSize S", "model.name", "vit_small_patch32_224"),
    ("--ViTSize L --model ViT", "model.name", "vit_large_patch32_224"),
    ("--model resnet18", "model.name", "resnet18"),
    ("--ViTSize B", "model.name", "vit_base_patch32_224"),
    ("--dataset CIFAR100", "data.dataset", "cifar100"),
    ("--dataset ImageNet", "data.dataset", "imagefolder"),
    ("--dataset digits", "data.dataset", "digits"),
    ("--labelNoise 0.2", "data.label_noise", 0.2),
    ("--logDir ./logs", "run.dir", "./logs"),
    ("--logSubDir first", "run.name", "first"),
    ("--contin", "run.resume", "must"),
    ("--contin False", "run.resume", "never"),
    ("--truncate", "run.overwrite", True),
    ("--truncate --epochs 3", "run.overwrite", True),
    ("--verbose", "verbose", True),
]


def value_of(config: Config, key: str) -> object:
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize(("line", "key", "expected"), FLAGS, ids=lambda case: str(case))
def test_flag_sets_its_key_and_one_line_says_so(line: str, key: str, expected: object) -> None:
    said: list[str] = []
    config = parse_config(line.split(), note=said.append)
    assert value_of(config, key) == expected
    renamed = [word for word in line.split() if word.removeprefix("--") in REFERENCE_NAMES]
    assert [note.split(" sets ")[0] for note in said[1:]] == renamed
    assert all(f" sets {REFERENCE_NAMES[word.removeprefix('--')].key} to " in " ".join(said) for word in renamed)


def test_every_name_is_tried_above() -> None:
    tried = {word.removeprefix("--") for line, _, _ in FLAGS for word in line.split()}
    assert set(REFERENCE_NAMES) <= tried


def test_a_parameter_file_may_hold_the_names_and_the_command_line_overrides_it(tmp_path: Path) -> None:
    file = tmp_path / "old.toml"
    file.write_text(
        'subLabels = 50\nreg = 10\nbatchSize = 64\nmodel = "ViT"\nViTSize = "S"\ndataset = "ImageNet"\n'
        'labelNoise = 0.1\nlogDir = "logs"\nlogSubDir = "old"\ncontin = false\ntruncate = true\nverbose = true\n'
    )
    said: list[str] = []
    config = parse_config(["--ifile", str(file), "--subLabels", "60"], note=said.append)
    assert (config.heads.labels, config.regularizer.factor, config.batch_size) == (60, 10.0, 64)
    assert (config.model.name, config.data.dataset) == ("vit_small_patch32_224", "imagefolder")
    assert (config.run.dir, config.run.name, config.run.resume) == ("logs", "old", "never")
    assert (config.run.overwrite, config.verbose, config.data.label_noise) == (True, True, 0.1)
    assert said[0] == f"{file}: subLabels sets heads.labels to 50"
    assert said[-1] == "--subLabels sets heads.labels to 60"
    assert len(said) == 12


def test_a_table_called_model_is_the_group_of_this_system(tmp_path: Path) -> None:
    (tmp_path / "new.toml").write_text("[model]\nname = 'resnet18'\n")
    assert parse_config(["--config", str(tmp_path / "new.toml")]).model.name == "resnet18"


def test_no_arguments_mean_the_shipped_file() -> None:
    said: list[str] = []
    assert parse_config([], note=said.append) == parse_config(["--config", str(CONFIGS / "cifar100_wrn.yaml")])
    assert said == ["no --config: reading configs/cifar100_wrn.yaml"]


def test_parameter_file_of_the_reference_leaves_nothing_to_its_defaults() -> None:
    """Over the reference's defaults (--ifile) or over this system's (--config): the same run."""
    file = str(CONFIGS / "ImageNet_ViT_adam.toml")
    assert parse_config(["--ifile", file]) == parse_config(["--config", file])


def test_help_names_the_reference_s_flags_beside_their_keys() -> None:
    words = " ".join(help_text().split())
    for name, meaning in REFERENCE_NAMES.items():
        after = words.partition(f" --{meaning.key} ")[2]
        assert f"--{name}" in after[: after.index(" --", 600)] or f"--{name}" in after[:1500], name


def command(*arguments: str, folder: Path) -> tuple[int, str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".typing"), "OMP_NUM_THREADS": "1"}
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        str(ROOT / "engine" / "train.py"),
        *arguments,
    ]
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.distributed
def test_command_without_data_ends_with_the_remedy(tmp_path: Path) -> None:
    code, output = command(*SECOND.split(), "--ViTSize", "B", "--reg", "1e3", folder=tmp_path)
    assert code == 1  # torchrun's, whatever the worker's
    assert "--ViTSize sets model.name to 'vit_base_patch32_224'" in output
    assert "--reg sets regularizer.factor to 1000.0" in output
    assert "error: data.root: got null; allowed: the folder of the images, which imagefolder needs" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    "line",
    [
        "--data.dataset synthetic --data.synthetic.train 64 --data.synthetic.val 32 --batchSize 32",
        f"{SECOND} --subLabels 100 --data.root TREE",
        f"{SECOND} --subLabels 100 --data.root TREE --ViTSize B --reg 1e3",
    ],
    ids=["first", "second", "third"],
)
def test_commands_start_where_there_are_images(line: str, tmp_path: Path) -> None:
    """One step each; the images stand in for those that are not here, and 100 labels for 100,000."""
    maker = [sys.executable, str(ROOT / "benchmarks" / "make_photo_tree.py"), str(tmp_path / "TREE")]
    subprocess.run([*maker, "--train", "8", "--val", "4", "--classes", "2"], check=True, capture_output=True)
    rest = ["--max_steps", "1", "--data.workers", "0", "--device", "cpu", "--precision", "fp32"]
    code, output = command(*line.split(), *rest, folder=tmp_path)
    assert code == 0, output
    assert "done: max_steps=1 reached" in output


@pytest.mark.distributed
def test_help_through_the_launcher(tmp_path: Path) -> None:
    code, output = command("-h", folder=tmp_path)
    assert code == 0
    assert "--heads.labels" in output
    assert "Also: --subLabels." in " ".join(output.split())
