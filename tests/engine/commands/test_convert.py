"""`rlpheads convert`: what it says before it writes, what it refuses, and that what it wrote is what was there."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loader_libraries import require_library
from PIL import Image
from small_runs import small_config

from rlpheads.engine import exit_codes
from rlpheads.engine.cli import main
from rlpheads.engine.config.command_line import dump_config, parse_config
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training import job
from rlpheads.loaders.sources.datasets import open_dataset


@pytest.fixture(autouse=True)
def _ffcv():
    require_library("ffcv")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of each of two classes in each of two splits."""
    root = tmp_path / "images"
    for number, name in enumerate(
        f"{split}/{label}/{n}.png" for split in ("train", "val") for label in "ab" for n in "12"
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(root / name)
    return root


def convert(root: Path, store: Path, *flags: str) -> int:
    return main(["convert", "--data.root", str(root), "--out", str(store), "--mode", "raw", "--workers", "0", *flags])


def test_it_says_what_it_will_cost_and_then_does_it(root, tmp_path, capsys):
    store = tmp_path / "x.beton"
    assert convert(root, store) == exit_codes.DONE
    said = capsys.readouterr().out
    written = sum((store / f"{split}.beton").stat().st_size for split in ("train", "val"))
    assert written > 2 * (8 << 20)  # the tables of each split fill a page
    assert f"8 images: about {written / 1e6:.3g} MB, " in said
    assert "ImageNet-1k at this rate, 1,331,167 images: " in said
    assert f"train with: --data.root {store} --data.loader ffcv --data.dataset imagefolder\n" in said
    ours, theirs = open_dataset("imagefolder", store, seed=0), open_dataset("imagefolder", root, seed=0)
    assert [source.manifest for source in ours] == [source.manifest for source in theirs]


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [
        "--data.exif apply --data.on_error skip",
        "--data.exif apply --data.val_fraction 0.5 --seed 3",
        "--data.dataset digits",
        "--data.dataset digits --data.val_fraction 0.9 --seed 3",
    ],
)
def test_the_settings_that_it_ends_with_train_on_the_store(flags, root, tmp_path, capsys):
    """And a run that wants these images without a store names the command that makes it."""
    config, store = small_config(tmp_path, "run", epochs=1), tmp_path / "the store"
    words, made_of = shlex.split(flags), [] if "digits" in flags else ["--data.root", str(root)]
    if "val_fraction" in flags and made_of:
        made_of[1] += "/train"
    if "skip" in flags:
        (root / "train" / "b" / "2.png").write_bytes(b"damaged")
    command = ["convert", *made_of, *words, "--out", str(store), "--mode", "raw", "--workers", "0"]
    assert main(command) == exit_codes.DONE
    hint = re.search(r"train with: (.*)", capsys.readouterr().out)[1]
    data = replace(config.data, val_fraction=None)
    (tmp_path / "tiny.yaml").write_text(dump_config(replace(config, batch_size=2, max_steps=1, data=data)))
    here = ["--config", str(tmp_path / "tiny.yaml"), *shlex.split(hint)]
    assert job.run(parse_config([*here, "--data.workers", "1"])) == exit_codes.DONE
    without = [word for word in here if word != str(store)]
    without[without.index("--data.root") : without.index("--data.root") + 1] = made_of
    with pytest.raises(ConfigError, match="the ffcv loader reads stores only") as refused:
        open_sources(parse_config(without))
    told = shlex.split(re.search(r"once: (.*); then train with", str(refused.value))[1])
    again = [str(tmp_path / "again") if word == "STORE" else word for word in told[1:]]
    assert main([*again, "--mode", "raw", "--workers", "0"]) == exit_codes.DONE
    open_sources(parse_config([str(tmp_path / "again") if word == str(store) else word for word in here]))


def test_a_store_that_is_there_is_neither_written_nor_verified(root, tmp_path, capsys):
    store = tmp_path / "x.beton"
    assert convert(root, store) == exit_codes.DONE
    assert convert(root, store) == exit_codes.WRONG_SETTINGS
    assert "is a store already" in capsys.readouterr().err
    assert main(["verify", "--data.root", str(store)]) == exit_codes.WRONG_SETTINGS
    assert "is a store: its images were decoded when it was made" in capsys.readouterr().err


def test_what_cannot_be_a_store_is_refused(root, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert convert(root, tmp_path / "file") == exit_codes.WRONG_SETTINGS
    assert "is a file; a store is a folder" in capsys.readouterr().err
    assert convert(root, tmp_path / "x", "--quality", "0") == exit_codes.WRONG_SETTINGS
    assert "quality is 0; it must be from 1 to 100" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_disk_without_room_is_said_before_anything_is_written(root, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert convert(root, tmp_path / "x") == exit_codes.WRONG_SETTINGS
    assert "has 1 kB left, and the store takes about 16.8 MB: name a folder" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_image_that_cannot_be_read_ends_it_with_the_remedy(root, tmp_path, capsys):
    (root / "train" / "b" / "2.png").write_bytes(b"damaged")
    assert convert(root, tmp_path / "x") == exit_codes.FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: image 3 (")
    assert "Start again with --data.on_error skip" in line
    assert convert(root, tmp_path / "x", "--data.on_error", "skip") == exit_codes.DONE
