"""Figures: the files are there, whole, and show what was given. Their look is not tested."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlpheads.memorization.figures.rla_figures import References, plot_rla_by_depth, plot_rla_by_epoch

TAPS = (0, 2, 5)
CLEAN, RUNNING, HELDOUT, DEEPEST = "#0072B2", "#D55E00", "#009E73", "#440154"
REFERENCES = References(num_labels=10, num_heldout=360, baseline=0.23)


def depth_accuracy(num_draws: int = 2) -> dict[str, np.ndarray]:
    accuracy_TM = np.linspace(0.15, 0.6, len(TAPS))[:, None] + 0.01 * np.arange(num_draws)
    return {"running": accuracy_TM - 0.03, "clean": accuracy_TM, "heldout": np.full((len(TAPS), num_draws), 0.1)}


def epoch_accuracy(num_epochs: int) -> dict[str, np.ndarray]:
    return {phase: np.stack([values] * num_epochs) for phase, values in depth_accuracy().items()}


def svg_text(path: Path) -> set[str]:
    return {
        "".join(node.itertext()).strip() for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    }


def num_pixels(png: Path, colour: str) -> int:
    """Pixels of exactly this colour in a picture fit for print."""
    with Image.open(png) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 600
    return int((pixels == list(bytes.fromhex(colour[1:]))).all(-1).sum())


def test_depth_figure_names_everything_it_shows(tmp_path):
    png, svg, _ = plot_rla_by_depth(tmp_path / "figures" / "depth", TAPS, depth_accuracy(), REFERENCES, "A title")
    assert all(num_pixels(png, colour) > 500 for colour in (CLEAN, RUNNING, HELDOUT))
    assert svg_text(svg) >= {
        "A title",
        "block",
        "random-label accuracy",
        "training set, clean pass",
        "training set, running",
        "held-out set",
        "chance (1/10)",
        "head-only baseline",
        "99.99% range of held-out at chance",
        "0",
        "2",
        "5",
        "50%",
    }
    assert sorted(file.name for file in png.parent.iterdir()) == ["depth.pdf", "depth.png", "depth.svg"]


@pytest.mark.long
def test_epoch_figure_has_a_panel_for_each_phase(tmp_path):
    png, svg, _ = plot_rla_by_epoch(tmp_path / "epochs.png", [1, 2, 3], TAPS, epoch_accuracy(3), REFERENCES)
    assert (png.name, svg.name) == ("epochs.png", "epochs.svg")
    assert num_pixels(png, DEEPEST) > 3000
    labels = {"training set, clean pass", "training set, running", "held-out set", "epoch", "block"}
    assert svg_text(svg) >= labels | {"head-only baseline", "chance (1/10)"}


def test_only_what_is_given_is_drawn(tmp_path):
    clean = {"clean": depth_accuracy()["clean"]}
    png, svg, _ = plot_rla_by_depth(tmp_path / "depth", TAPS, clean, References(num_labels=2))
    assert num_pixels(png, CLEAN) > 500
    assert num_pixels(png, RUNNING) == num_pixels(png, HELDOUT) == 0
    text = svg_text(svg)
    assert {"training set, clean pass", "chance (1/2)"} <= text
    assert not text & {"head-only baseline", "held-out set", "training set, running"}


@pytest.mark.long
def test_equal_figures_are_equal_files(tmp_path):
    first, second = (
        plot_rla_by_depth(tmp_path / folder / "depth", TAPS, depth_accuracy(), REFERENCES) for folder in "ab"
    )
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


@pytest.mark.long
def test_dots_in_a_file_name_are_kept(tmp_path):
    png, svg, _ = plot_rla_by_depth(tmp_path / "factor=0.5", TAPS, depth_accuracy(), REFERENCES)
    assert (png.name, svg.name) == ("factor=0.5.png", "factor=0.5.svg")


@pytest.mark.long
def test_one_epoch_one_draw_and_one_tap(tmp_path):
    references = References(num_labels=10, baseline=[0.3])
    png, *_ = plot_rla_by_epoch(tmp_path / "epochs", [0], [3], {"clean": [[[0.4]]]}, references)
    assert num_pixels(png, DEEPEST) > 0
    png, *_ = plot_rla_by_depth(tmp_path / "depth", [3], {"clean": [[0.4]]}, references)
    assert num_pixels(png, CLEAN) > 0


@pytest.mark.long
def test_lines_pass_over_epochs_that_were_not_measured(tmp_path):
    """Measured at the first epoch and the last, the line is whole between them."""
    epochs, clean_ETM = [1, 2, 3, 4], np.full((4, 1, 1), 0.4)
    whole, *_ = plot_rla_by_epoch(tmp_path / "whole", [1, 4], [3], {"clean": clean_ETM[[0, 3]]}, REFERENCES)
    clean_ETM[1:3] = np.nan
    gaps, *_ = plot_rla_by_epoch(tmp_path / "gaps", epochs, [3], {"clean": clean_ETM}, REFERENCES)
    assert num_pixels(gaps, DEEPEST) == num_pixels(whole, DEEPEST)


@pytest.mark.long
def test_a_baseline_of_each_tap_bends_with_depth(tmp_path):
    clean = {"clean": [[0.4], [0.5], [0.6]]}
    flat, *_ = plot_rla_by_depth(tmp_path / "flat", TAPS, clean, References(num_labels=10, baseline=[0.3, 0.3, 0.3]))
    same, *_ = plot_rla_by_depth(tmp_path / "same", TAPS, clean, References(num_labels=10, baseline=0.3))
    bent, *_ = plot_rla_by_depth(tmp_path / "bent", TAPS, clean, References(num_labels=10, baseline=[0.2, 0.3, 0.4]))
    assert flat.read_bytes() == same.read_bytes()
    assert flat.read_bytes() != bent.read_bytes()


@pytest.mark.parametrize(
    ("accuracy", "message"),
    [
        ({}, "clean, audit, running, heldout; got nothing"),
        ({"train": np.zeros((3, 1))}, "got train"),
        ({"clean": np.zeros((2, 1))}, r"accuracy\['clean'\] has shape \(2, 1\)"),
        ({"clean": np.zeros(3)}, r"shape \(3,\)"),
        ({"clean": np.zeros((3, 0))}, "nothing empty"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, accuracy, message):
    with pytest.raises(ValueError, match=message):
        plot_rla_by_depth(tmp_path / "depth", TAPS, accuracy, REFERENCES)
    assert not list(tmp_path.iterdir())
