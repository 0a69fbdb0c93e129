"""Paths are expanded as a shell does it, wherever one is given, and kept absolute where later commands need them."""

from dataclasses import replace
from pathlib import Path

import pytest

from rlpheads.engine.cli import main
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.files import SHIPPED, find_config_file
from rlpheads.engine.config.paths import PATH_KEYS, expand_path, with_absolute_paths
from rlpheads.engine.config.schema import Config


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and another folder to work in."""
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def value_of(config: Config, key: str) -> str:
    group, name = key.split(".")
    return getattr(getattr(config, group), name)


@pytest.mark.wrong("paths")
@pytest.mark.parametrize("given", ["~/x", "$HOME/x", "${HOME}/x"])
@pytest.mark.parametrize("key", PATH_KEYS)
def test_home_is_expanded_in_flags_and_files(home, key, given):
    group, name = key.split(".")
    file = home / "my.yaml"
    file.write_text(f"{group}: {{{name}: '{given}'}}\n")
    for argv in (["--config", "digits_vit", f"--{key}={given}"], ["--config", "~/my.yaml"], ["--config=$HOME/my.yaml"]):
        assert value_of(parse_config(argv), key) == f"{home}/x"


@pytest.mark.parametrize("given", ["a$b/c", "a~b", "./~x", "/a/~", "x/$NOWHERE", "runs", "", "caf\u00e9 [1]"])
def test_other_paths_stay_as_they_are(home, given):
    assert expand_path("run.dir", given) == given


@pytest.mark.wrong("paths")
@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ("$NOWHERE/x", "a variable that is set"),
        ("${NOWHERE}", "a variable that is set"),
        ("~nobody-of-this-name/x", "a home folder that is known"),
    ],
)
def test_beginning_that_means_nothing_is_refused_and_makes_no_folder(home, given, allowed):
    with pytest.raises(ConfigError) as refused:
        parse_config(["--config", "digits_vit", f"--run.dir={given}"])
    message = f"run.dir: got '{given}'; allowed: {allowed} (a folder of that very name: its absolute path)"
    assert str(refused.value) == message


@pytest.mark.wrong("paths")
@pytest.mark.parametrize(
    "argv",
    [
        ["audit", "~/missing"],
        ["audit", "$HOME/missing"],
        ["canaries", "~/missing"],
        ["study", "~/missing.yaml"],
        ["verify", "--data.root=~/missing"],
        ["convert", "--data.root=~/missing", "--out=~/out"],
    ],
    ids=" ".join,
)
def test_arguments_of_commands_are_expanded(home, argv, capsys):
    assert main(argv) == 2
    assert f"{home}/missing" in capsys.readouterr().err
    assert not list(Path().iterdir())


@pytest.mark.wrong("paths")
def test_argument_that_means_nothing_is_refused(home, capsys):
    assert main(["audit", "$NOWHERE/run"]) == 2
    assert capsys.readouterr().err.startswith("error: folder: got '$NOWHERE/run'; allowed: a variable that is set")


@pytest.mark.parametrize("file", sorted(SHIPPED.iterdir()), ids=lambda file: file.stem)
def test_configuration_that_comes_with_rlpheads_is_named_from_any_folder(home, file):
    assert find_config_file(file.stem) == file
    assert parse_config(["--config", file.stem]) == parse_config(["--config", str(file)])


@pytest.mark.wrong("paths")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("digits_vti", r"comes with rlpheads: ImageNet_ViT_adam, .*digits_vit, .*; nearest: digits_vit"),
        ("x.json", r"allowed: a file that ends in .yaml, .yml, .toml, or one that comes with rlpheads: "),
        ("configs/digits_vit.yaml", "no such file from here; --config digits_vit is the one that comes with rlpheads"),
        ("digits_vit.yaml", "no such file from here; --config digits_vit is the one that comes with rlpheads"),
    ],
)
def test_configuration_that_is_not_found_says_which_come_with_rlpheads(home, given, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(["--config", given])


def test_images_and_weights_are_kept_absolute_and_links_stay(home):
    Path("images").symlink_to(home)
    config = Config()
    data, model = replace(config.data, root="images"), replace(config.model, checkpoint="w.pt")
    kept = with_absolute_paths(replace(config, data=data, model=model))
    assert (kept.data.root, kept.model.checkpoint) == (str(Path.cwd() / "images"), str(Path.cwd() / "w.pt"))
    assert (kept.data.verified, kept.run.dir) == (None, "runs")
