"""The help: every key with its meaning and default, section by section, or one section of it."""

from __future__ import annotations

import pytest

from rlpheads.engine import cli, train
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.help import help_text
from rlpheads.engine.config.keys import known_keys


def test_help_has_every_key_with_its_meaning_and_default() -> None:
    words = " ".join(help_text().split())
    for key in known_keys().leaves:
        assert f" --{key} " in words
    assert "Seed of all streams of random numbers. (type: int, default: 0)" in words
    decay = "not applied to biases, norms and what the model excludes (position embeddings, class token)."
    assert f"{decay} (type: float, default: 0.05)" in words
    assert f"{decay} (type: float, default: 0.0)" in words


def test_every_key_has_a_meaning() -> None:
    for line in " ".join(help_text().split()).split(" --")[1:]:
        assert not line.split(" ", 2)[-1].startswith("(type:"), line


def test_help_offers_no_flag_that_would_be_refused() -> None:
    offered = {word.rstrip(",") for line in help_text().splitlines() for word in line.split()[:1] if line[:4] == "  --"}
    assert offered == {"--config", "--ifile", *(f"--{key}" for key in known_keys().leaves)}


@pytest.mark.parametrize("argv", [["-h"], ["--epochs", "x", "--help"]])
def test_help_is_printed_by_rank_0_alone(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, printed in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as exit_:
            parse_config(argv)
        assert exit_.value.code == 0
        assert ("--heads.taps" in capsys.readouterr().out) is printed


def keys_in(text: str) -> list[str]:
    return [line.split()[0].removeprefix("--") for line in text.splitlines() if line.startswith("  --")]


@pytest.mark.parametrize(
    ("section", "first", "last", "count"),
    [
        ("data.mix", "data.mix.mixup", "data.mix.off_epoch", 7),
        ("model", "model.name", "model.ema.foreach", 15),
        ("heads.optim", "heads.optim.name", "heads.optim.clip_agc", 11),
        ("optim.lr", "optim.lr", "optim.lr", 1),
        ("--epochs", "epochs", "epochs", 1),
        ("general", "seed", "verbose", 10),
    ],
)
def test_one_section_or_one_key_alone(section: str, first: str, last: str, count: int) -> None:
    keys = keys_in(help_text(section))
    assert (keys[0], keys[-1], len(keys)) == (first, last, count)


def test_sections_are_headed_by_their_keys() -> None:
    headings = [line[:-1] for line in help_text().splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[:4] == ["options", "general", "loss_scale", "run"]
    assert {"data.augment", "heads.optim", "runtime.profile"} <= set(headings)


def test_both_commands_print_a_section_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help", "ledger"]) == 0
    said = capsys.readouterr().out
    with pytest.raises(SystemExit):
        train.main(["--help", "ledger"])
    assert capsys.readouterr().out.strip() == said.strip()
    assert said.startswith("ledger:\n  Ledgers, the per-sample records")
    assert len(said.splitlines()) < 10


@pytest.mark.parametrize("width", [40, 80])
def test_no_line_is_wider_than_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the lists of choices, which argparse does not break."""
    monkeypatch.setenv("COLUMNS", str(width))
    wide = [line for line in help_text().splitlines() if len(line) > width]
    assert all(line.lstrip().startswith(("--", "usage:")) for line in wide)


@pytest.mark.wrong("command")
@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("dat", "--help dat: no such section or key; nearest: data"),
        ("model.args.depth", "--help model.args.depth: no such section or key; nearest: model.args"),
        ("zzzz", "--help zzzz: no such section or key; sections: general, loss_scale, run, data, model, heads"),
    ],
)
def test_section_that_is_not_there(section: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (lambda: cli.main(["train", "--help", section]), lambda: train.main(["--help", section])):
        assert command() == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")
