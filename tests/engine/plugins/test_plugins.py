"""Plug-ins of a run: a model, an optimizer, a data set and callbacks that no file of ours knows; and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlpheads.engine.cli import main
from rlpheads.engine.config.command_line import dump_config, parse_config
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.learning import ModelConfig, OptimConfig
from rlpheads.engine.plugins.callback import EVENTS
from rlpheads.engine.plugins.loading import load_plugins
from rlpheads.engine.training import job

PLUGIN = '''
"""A whole plug-in: its import is the registration."""
import json
import numpy as np
import torch
from timm.models import register_model
from timm.optim._optim_factory import OptimInfo, default_registry
from torch import nn
from rlpheads.engine.plugins.callback import Callback
from rlpheads.loaders.contract.manifest import Manifest

(IMPORTED).write_text("imported")


class Perceptron(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.feature_info = [{"num_chs": 6, "reduction": 1, "module": "hidden"}]
        self.hidden = nn.Linear(3 * 8 * 8, 6)
        self.out = nn.Linear(6, num_classes)

    def forward(self, images):
        return self.out(self.hidden(images.flatten(1)))

    def forward_intermediates(self, images, indices=None, norm=False, output_fmt="NCHW"):
        hidden = self.hidden(images.flatten(1))
        return hidden, [hidden[:, :, None, None]]

    def forward_head(self, hidden):
        return self.out(hidden)

    def get_classifier(self):
        return self.out


@register_model
def my_perceptron(pretrained=False, num_classes=10, **kwargs):
    return Perceptron(num_classes)


class Stubborn(torch.optim.SGD):
    """Goes the other way round."""
    def step(self, closure=None):
        super().step(closure)


default_registry.register(OptimInfo(name="stubborn", opt_class=Stubborn, description="a plug-in's"))


class Gradients:
    def __init__(self, split, num_samples):
        names = [f"{split}/{number:03d}".encode() for number in range(num_samples)]
        targets = np.arange(num_samples) * 3 // num_samples
        columns = {"classes": ("dark", "grey", "light"), "root": None, "split": split}
        self.manifest = Manifest.from_columns(names, targets, np.full(num_samples, 64), **columns)

    def read(self, index):
        return torch.full((3, 8, 8), int(self.manifest.targets[index]) * 100 + index % 7, dtype=torch.uint8)


def open_images(root, seed):
    return Gradients("train", 48), Gradients("val", 12)


class Diary(Callback):
    def __init__(self):
        self.lines = []

    def run_started(self, state):
        self.lines.append(["run_started", state.epoch, state.step])

    def epoch_started(self, state):
        self.lines.append(["epoch_started", state.epoch, state.step])

    def step_taken(self, state):
        self.lines.append(["step_taken", state.epoch, state.step])

    def epoch_finished(self, state, figures):
        assert figures["kind"] == "epoch" and figures["epoch"] == state.epoch
        self.lines.append(["epoch_finished", state.epoch, state.step])

    def run_finished(self, state, status, reason):
        self.lines.append(["run_finished", status, reason, type(state.model.backbone).__name__, state.is_main])
        (state.folder / "diary.json").write_text(json.dumps(self.lines))


callbacks = [Diary()]
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A plug-in module of a name of its own in a folder on the path; returns how to write it, and the mark of its import."""
    written = []

    def write(text, name=f"plugin_{tmp_path.name}"):
        mark = tmp_path / f"{name}.imported"
        (tmp_path / f"{name}.py").write_text(text.replace("(IMPORTED)", f"__import__('pathlib').Path({str(mark)!r})"))
        written.append(name)
        return name, mark

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.mark.long
def test_a_run_with_a_model_an_optimizer_a_data_set_and_callbacks_of_a_plugin(tiny, plugin):
    name, mark = plugin(PLUGIN)
    config = replace(
        tiny,
        plugins=[name],
        batch_size=16,
        data=replace(tiny.data, dataset="plugin"),
        model=ModelConfig(name="my_perceptron"),
        optim=OptimConfig(name="stubborn", lr=1e-3),
        heads=replace(tiny.heads, taps=["hidden"]),
    )
    assert job.run(config) == 0
    folder = Path(config.run.dir) / config.run.name
    expected = [["run_started", 0, 0]]
    for epoch, first in ((0, 0), (1, 3)):
        steps = [["step_taken", epoch, first + step] for step in (1, 2, 3)]
        expected += [["epoch_started", epoch, first], *steps, ["epoch_finished", epoch, first + 3]]
    expected.append(["run_finished", "done", "all 2 epochs trained", "Perceptron", True])
    assert json.loads((folder / "diary.json").read_text()) == expected
    _commands_import_what_a_run_names_on_request_alone(folder, name, mark)


def _commands_import_what_a_run_names_on_request_alone(folder, name, mark):
    """In a process of its own, where nothing has imported it yet."""
    mark.unlink()
    code = (
        "import sys; from pathlib import Path; from rlpheads.engine.cli import main\n"
        f"words, mark = ['audit', {str(folder)!r}, '--draws', '4'], Path({str(mark)!r})\n"
        f"evaluate = ['evaluate', {str(folder)!r}, '--verbose', 'true']\n"
        f"figures = ['figures', {str(folder)!r}, '--format', 'svg']\n"
        "found = [main(words), main(evaluate), main(figures), mark.exists(), main([*words, '--plugins']), mark.exists()]\n"
        "print(found, file=sys.stderr)"
    )
    environment = {"PYTHONPATH": str(mark.parent), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr.splitlines()[-1] == "[2, 2, 0, False, 0, True]", done.stderr
    assert f"this run names the plug-ins {name}, code of whoever made it: --plugins imports them" in done.stderr
    assert list((folder / "audit").glob("*.json"))
    _what_a_strangers_model_does_not_say_is_known_from_the_run(folder, name)


def _what_a_strangers_model_does_not_say_is_known_from_the_run(folder, name):
    """It has neither timm's description of weights nor a number of classes; figures and canaries read files alone."""
    out = folder / "out.safetensors"
    assert main(["export", str(folder), str(out), "--plugins"]) == 0
    assert json.loads(out.with_name("config.json").read_text())["num_classes"] == 3
    assert main(["evaluate", str(out), "--plugins", name, "--data.dataset", "plugin", "--data.workers", "0"]) == 0
    assert main(["report", str(folder), "--plugins"]) == 0
    assert "data:image/png" in (folder / "report.html").read_text()


def test_the_setting_is_written_and_read_again(tmp_path):
    config = parse_config(["--config", "digits_vit", "--plugins", "[my.first, second]"])
    assert config.plugins == ["my.first", "second"]
    assert parse_config(["--config", "digits_vit", "--plugins", "one.module"]).plugins == ["one.module"]
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert parse_config(["--config", str(tmp_path / "config.yaml")]) == config


@pytest.mark.wrong("config")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", r"cannot be imported: .*plugin_.*\.py, line 1: SyntaxError"),
        ("a = 1\nb = 1 / 0\n", r"cannot be imported: .*, line 2: ZeroDivisionError: division by zero"),
        ("import no_such_library\n", "imports no_such_library, which is not installed"),
        ("callbacks = 3\n", "callbacks is int; allowed: a list of Callback objects"),
        (
            "callbacks = [len]\n",
            "callbacks holds builtin_function_or_method; allowed: objects of subclasses of Callback",
        ),
        (
            "from rlpheads.engine.plugins.callback import Callback\ncallbacks = [Callback]\n",
            "callbacks holds the class Callback; allowed: objects",
        ),
        (
            "from rlpheads.engine.plugins.callback import Callback\n"
            "class Mine(Callback):\n    def epoch_end(self, state): pass\ncallbacks = [Mine()]\n",
            r"Mine.epoch_end is no event; allowed: run_started, .* \(nearest: epoch_",
        ),
        ("open_images = 'here'\n", r"open_images is str; allowed: a function of \(root, seed\)"),
    ],
)
def test_what_a_plugin_gets_wrong_is_told_with_its_name(plugin, text, message):
    name, _ = plugin(text)
    with pytest.raises(ConfigError, match=f"plugins: .*{message}"):
        load_plugins([name])


@pytest.mark.wrong("config")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.module", "there is no module no_such_package; install the package, or name the folder"),
        ("json.no_such_module", "there is no module json.no_such_module"),
        ("../plugin.py", r"got '\.\./plugin\.py'; allowed: names of modules, such as my_package\.my_module"),
    ],
)
def test_modules_that_are_not_there(name, message):
    with pytest.raises(ConfigError, match=message):
        load_plugins([name])


@pytest.mark.wrong("config")
def test_a_wrong_plugin_is_one_line_before_anything_is_made(tmp_path, capsys):
    assert main(["train", "--config", "digits_vit", "--run.dir", str(tmp_path), "--plugins", "no_such_package"]) == 2
    assert capsys.readouterr().err.count("error: plugins: there is no module no_such_package") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.wrong("config")
def test_a_data_set_is_opened_by_one_plugin(plugin):
    with pytest.raises(ConfigError, match="no module of plugins has"):
        load_plugins([]).open_images(None, 0)
    first, second = (
        plugin("def open_images(root, seed): pass\n")[0],
        plugin("def open_images(root, seed): pass\n", "second")[0],
    )
    with pytest.raises(ConfigError, match=f"{first} and second have"):
        load_plugins([first, second]).open_images(None, 0)


def test_there_are_five_events():
    assert EVENTS == ("run_started", "epoch_started", "step_taken", "epoch_finished", "run_finished")
