"""From files and flags to a `Config`: precedence, values, help, the round trip, and that no other error comes out."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlpheads.engine.config.command_line import ConfigError, dump_config, parse_config
from rlpheads.engine.config.learning import OptimConfig
from rlpheads.engine.config.reference_names import REFERENCE_NAMES
from rlpheads.engine.config.schema import Config

CONFIGS = Path(__file__).parents[3] / "configs"
FUZZ = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


# --- precedence ---


def test_later_file_wins_key_by_key_and_flags_win_over_files(tmp_path: Path) -> None:
    first = write(tmp_path, "first.yaml", "epochs: 3\nbatch_size: 8\noptim: {lr: 1.0, momentum: 0.5}")
    second = write(tmp_path, "second.toml", "epochs = 4\noptim.lr = 2.0\nseed = 7")
    config = parse_config(["--config", first, "--config", second, "--seed", "9"])
    assert (config.epochs, config.batch_size, config.seed) == (4, 8, 9)
    assert config.optim == OptimConfig(lr=2.0, momentum=0.5)


def test_a_later_file_does_not_override_an_earlier_flag(tmp_path: Path) -> None:
    files = [write(tmp_path, f"{epochs}.yaml", f"epochs: {epochs}") for epochs in (3, 4)]
    assert parse_config(["--epochs", "5", "--config", files[0], f"--config={files[1]}"]).epochs == 5


def test_where_the_flags_stand_among_the_files_does_not_matter(tmp_path: Path) -> None:
    files = [["--config", write(tmp_path, f"{name}.yaml", f"epochs: {name}")] for name in (3, 4)]
    flags = [["--optim.lr", "0.5"], ["--verbose"]]
    results = {
        dump_config(parse_config(list(itertools.chain(*order))))
        for order in itertools.permutations([*files, *flags])
        if order.index(files[0]) < order.index(files[1])
    }
    assert len(results) == 1


def test_the_last_of_a_repeated_flag_wins() -> None:
    assert parse_config(["--epochs", "3", "--epochs=4"]).epochs == 4


def test_entries_of_a_mapping_are_merged_and_null_takes_one_back(tmp_path: Path) -> None:
    first = write(tmp_path, "a.yaml", "model: {args: {depth: 6, block: {size: 1, kind: x}}}")
    second = write(tmp_path, "b.yaml", "model: {args: {block: {size: 2}}}")
    flags = ["--model.args.block.new", "[1, 2]", "--model.args", "{num_heads: 3}", "--model.args.depth", "null"]
    config = parse_config(["--config", first, "--config", second, *flags])
    assert config.model.args == {
        "depth": None,
        "block": {"size": 2, "kind": "x", "new": [1, 2]},
        "num_heads": 3,
    }


def test_a_group_keeps_its_own_defaults(tmp_path: Path) -> None:
    """The heads' optimizer has no weight decay unless asked for, the backbone's has."""
    config = parse_config(["--config", write(tmp_path, "a.yaml", "epochs: 3"), "--heads.optim.lr", "0.5"])
    assert config.heads.optim == OptimConfig(lr=0.5, weight_decay=0.0)
    assert config.optim == OptimConfig()


def test_run_is_named_after_the_last_file_unless_named(tmp_path: Path) -> None:
    files = [
        "--config",
        write(tmp_path, "one.yaml", "epochs: 3"),
        "--config",
        write(tmp_path, "two.v2.toml", "epochs=3"),
    ]
    assert parse_config(files).run.name == "two.v2"
    assert parse_config([*files, "--run.name", "mine"]).run.name == "mine"
    assert parse_config(["--epochs", "3"]).run.name == "cifar100_wrn"


# --- values ---


@pytest.mark.parametrize(
    ("argv", "key", "expected"),
    [
        (["--verbose"], "verbose", True),
        (["--verbose", "False"], "verbose", False),
        (["--verbose=true"], "verbose", True),
        (["--verbose", "--seed", "3"], "verbose", True),
        (["--heads.norm", "false"], "heads.norm", False),
        (["--optim.lr", "1e-3"], "optim.lr", 1e-3),
        (["--optim.lr", "-1e-3"], "optim.lr", -1e-3),
        (["--optim.lr=.5"], "optim.lr", 0.5),
        (["--optim.lr", "1"], "optim.lr", 1.0),
        (["--regularizer.factor", "1e3"], "regularizer.factor", 1000.0),
        (["--heads.labels", "100_000"], "heads.labels", 100_000),
        (["--seed", "-1"], "seed", -1),
        (["--max_steps", "null"], "max_steps", None),
        (["--max_steps", "5"], "max_steps", 5),
        (["--heads.taps", "[-1]"], "heads.taps", [-1]),
        (["--heads.taps=[0, -1]"], "heads.taps", [0, -1]),
        (["--heads.taps", "none"], "heads.taps", "none"),
        (["--heads.taps", "0,-1"], "heads.taps", [0, -1]),
        (["--heads.taps", "-1"], "heads.taps", [-1]),
        (["--heads.taps=3.attn, 5"], "heads.taps", ["3.attn", 5]),
        (["--heads.taps", "layer2.0"], "heads.taps", ["layer2.0"]),
        (["--schedule.milestones", "30,60"], "schedule.milestones", [30.0, 60.0]),
        (["--data.crop_scale", "0.5,1"], "data.crop_scale", (0.5, 1.0)),
        (["--data.canaries.repeats", "3"], "data.canaries.repeats", 3),
        (["--model.args.x", "0,5"], "model.args", {"x": "0,5"}),
        (["--data.crop_scale", "[0.5, 1]"], "data.crop_scale", (0.5, 1.0)),
        (["--data.root", "null"], "data.root", None),
        (["--log.wandb_project", "~"], "log.wandb_project", "~"),
        (["--data.root=--odd"], "data.root", "--odd"),
        (["--run.name", "007"], "run.name", "007"),
        (["--run.name", "null"], "run.name", "null"),
        (["--run.name", "a # b: [c"], "run.name", "a # b: [c"),
        (["--run.name", "x=y"], "run.name", "x=y"),
        (["--run.name="], "run.name", "cifar100_wrn"),
        (["--model.args.x", "6"], "model.args", {"x": 6}),
        (["--model.args.x", "'6'"], "model.args", {"x": "6"}),
        (["--model.args.x", "1e-3"], "model.args", {"x": 1e-3}),
        (["--model.args.x", "a # b"], "model.args", {"x": "a # b"}),
        (["--model.args.x=[1"], "model.args", {"x": "[1"}),
    ],
)
def test_flag_value(argv: list[str], key: str, expected: object) -> None:
    value: Any = parse_config(argv)
    for name in key.split("."):
        value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1e-3", 1e-3), ("1e3", 1000.0), ("+.5", 0.5), ("5.", 5.0), ("-0", 0.0), ("1_000", 1000.0), ("12", 12.0)],
)
def test_numbers_in_yaml(tmp_path: Path, text: str, expected: float) -> None:
    """YAML 1.1, which PyYAML follows, reads 1e-3 and 1e3 as text."""
    value = parse_config(["--config", write(tmp_path, "a.yaml", f"optim: {{lr: {text}}}")]).optim.lr
    assert (value, type(value)) == (expected, float)


@pytest.mark.parametrize(
    "text", ["no", "on", "010", "1:30", "2024-01-01", "0x1F", "1__0", "'5'", "''", "é", "~x", "1e"]
)
def test_text_in_yaml_stays_text(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, "a.yaml", f"log: {{wandb_project: {text}}}")
    assert parse_config(["--config", file]).log.wandb_project == text.strip("'")


def test_yaml_and_toml_say_the_same(tmp_path: Path) -> None:
    as_yaml = "epochs: 3\ndata: {crop_scale: [0.5, 1], root: a}\nmodel: {args: {depth: 6}}\nrun: {name: same}"
    as_toml = "epochs = 3\nrun.name = 'same'\n[data]\ncrop_scale = [0.5, 1]\nroot = 'a'\n[model.args]\ndepth = 6"
    files = [write(tmp_path, "a.yaml", as_yaml), write(tmp_path, "a.toml", as_toml)]
    assert parse_config(["--config", files[0]]) == parse_config(["--config", files[1]])


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfepochs: 3")
    assert parse_config(["--config", str(tmp_path / "a.yaml")]).epochs == 3


def test_environment_variables_do_not_reach_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EPOCHS", "RLPHEADS_EPOCHS", "JSONARGPARSE_DEFAULT_ENV", "TRAIN_EPOCHS"):
        monkeypatch.setenv(name, "3")
    assert parse_config(["--seed", "1"]).epochs == parse_config([]).epochs


# --- shipped files, help, start-up ---


@pytest.mark.parametrize("file", sorted(CONFIGS.iterdir()), ids=lambda file: file.name)
def test_shipped_file_parses_and_its_header_names_it(file: Path) -> None:
    config = parse_config(["--config", str(file)])
    assert config.run.name == file.stem
    header = file.read_text().split("\n\n")[0]
    assert f"--config configs/{file.name}" in header
    assert "# Time:" in header
    assert "# Expect:" in header


def fields_of(cls: type, prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, hint in get_type_hints(cls).items():
        pairs += fields_of(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else [(prefix + name, hint)]
    return pairs


def test_parsing_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from rlpheads.engine.config.command_line import parse_config; "
        f"parse_config(['--config', {str(CONFIGS / 'digits_vit.yaml')!r}]); "
        "print(sorted({'torch', 'timm', 'numpy', 'jsonargparse'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- the round trip ---

FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    [
        "null",
        "1e-3",
        "yes",
        "010",
        "1_000",
        ".inf",
        "a: b",
        "# c",
        "- d",
        "<<",
        "2024-01-01",
        "=",
        "~",
        "!x",
        "*y",
        "1:30",
    ]
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return st.builds(hint, **{name: values_of(below) for name, below in get_type_hints(hint).items()})
    if origin is Literal:
        return st.sampled_from(args)
    if origin in (Union, types.UnionType):
        return st.one_of([values_of(arg) for arg in args])
    if origin is list:
        return st.lists(values_of(args[0]), max_size=3)
    if origin is tuple:
        return st.tuples(*map(values_of, args))
    if origin is dict:
        return st.dictionaries(TEXT, PLAIN, max_size=3)
    scalars = {bool: st.booleans(), int: st.integers(), float: FINITE, str: TEXT, types.NoneType: st.none()}
    return scalars[hint]


def has_no_special_path(config: Config) -> bool:
    paths = (config.run.dir, config.data.root, config.data.verified, config.data.stage, config.model.checkpoint)
    return not any(path is not None and (path.startswith("~") or "$" in path) for path in paths)


@pytest.mark.long
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=values_of(Config).filter(has_no_special_path))
def test_dumped_config_parses_back_to_an_equal_one(tmp_path: Path, config: Config) -> None:
    file = write(tmp_path, "config.yaml", dump_config(config))
    parsed = parse_config(["--config", file])
    assert parsed.schedule.warmup_epochs <= config.schedule.warmup_epochs  # cut to the epochs of the run
    schedule = dataclasses.replace(config.schedule, warmup_epochs=parsed.schedule.warmup_epochs)
    run = dataclasses.replace(config.run, name=config.run.name or "config")
    assert parsed == dataclasses.replace(config, run=run, schedule=schedule)


def test_dump_is_plain_yaml_in_the_order_of_the_dataclasses() -> None:
    config = parse_config(["--config", str(CONFIGS / "digits_vit.yaml")])
    text = dump_config(config)
    loaded = yaml.safe_load(text)
    assert list(loaded) == [field.name for field in dataclasses.fields(Config)]
    assert loaded["data"]["crop_scale"] == [0.85, 1.0]
    assert "crop_scale: [0.85, 1.0]\n" in text
    assert dump_config(config) == text


# --- whatever is given, a Config or a ConfigError comes out ---

KEYS = [key for key, _ in fields_of(Config)]
NAMES = [*KEYS, *REFERENCE_NAMES, "optim", "heads"]
SCALARS = st.sampled_from(
    ["1", "-1", "1e3", "0.5", ".nan", ".inf", "true", "null", "x", "[1]", "{a: 1}", "[", "''", "~", ""]
)
TOKENS = st.one_of(
    st.sampled_from([f"--{key}" for key in [*KEYS, *REFERENCE_NAMES]]),
    st.builds("--{}={}".format, st.sampled_from(KEYS), SCALARS),
    st.sampled_from(
        [
            "--config",
            "--ifile",
            "--model",
            "--model.args.x",
            "--model.args.x.y",
            "--model.args.",
            "-",
            "--",
            "=",
            "--=",
            ".",
        ]
    ),
    SCALARS,
    st.text(max_size=12),
).filter(lambda token: token not in ("-h", "--help"))
YAML_LINES = st.lists(
    st.builds(
        "{}{}: {}".format,
        st.sampled_from(["", "  ", "- ", "? "]),
        st.sampled_from([*KEYS, *REFERENCE_NAMES, "optim", "heads"]),
        SCALARS,
    )
    | st.text(max_size=20),
    max_size=5,
).map("\n".join)
TOML_LINES = st.lists(
    st.builds("{} = {}".format, st.sampled_from(NAMES), SCALARS)
    | st.sampled_from(["[optim]", "[model.args]", "[[heads]]", "epochs = 3"])
    | st.text(max_size=20),
    max_size=5,
).map("\n".join)


def parse_or_refuse(argv: list[str]) -> None:
    """Any other exception than ConfigError fails the test that calls this."""
    try:
        config = parse_config(argv)
    except ConfigError as error:
        complaint = str(error)
    else:
        assert yaml.safe_load(dump_config(config))["epochs"] == config.epochs
        return
    assert complaint


@pytest.mark.long
@FUZZ
@given(argv=st.lists(TOKENS, max_size=6))
def test_any_command_line(argv: list[str]) -> None:
    parse_or_refuse(argv)


@FUZZ
@given(text=YAML_LINES | st.text(), flags=st.lists(TOKENS, max_size=2))
def test_any_yaml_file(tmp_path: Path, text: str, flags: list[str]) -> None:
    (tmp_path / "a.yaml").write_bytes(text.encode(errors="surrogatepass"))
    parse_or_refuse(["--config", str(tmp_path / "a.yaml"), *flags])


@FUZZ
@given(text=TOML_LINES | st.text())
def test_any_toml_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_bytes(text.encode(errors="surrogatepass"))
    parse_or_refuse(["--config", str(tmp_path / "a.toml")])


@FUZZ
@given(content=st.binary(max_size=40), suffix=st.sampled_from(["yaml", "toml"]))
def test_any_bytes(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(content)
    parse_or_refuse(["--config", str(tmp_path / f"a.{suffix}")])


@FUZZ
@given(name=st.text(max_size=300))
def test_any_file_name(name: str) -> None:
    parse_or_refuse(["--config", f"{name}.yaml"])


@pytest.mark.wrong("config")
def test_a_mode_or_a_switch_has_a_nearest_value() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(["--runtime.compile", "reduce-overheads"])
    assert str(caught.value) == (
        "--runtime.compile: got 'reduce-overheads'; allowed: true or false, reduce-overhead or max-autotune "
        "(nearest: reduce-overhead)"
    )
