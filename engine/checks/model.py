"""Models and optimizers that cannot be built, and weights that do not fit: the model is planned on torch's meta device."""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import huggingface_hub.constants
import timm
import timm.optim
import torch
from torch import nn

from rlpheads.engine.checks.preprocessing import preprocessing_errors
from rlpheads.engine.config.data import PLUGIN_DATASET, DataConfig
from rlpheads.engine.config.errors import ConfigError, nearest, refusal, show_value
from rlpheads.engine.config.learning import HeadsConfig, ModelConfig, OptimConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.learner.optimizer import ELEMENTWISE, OWN_KEYS, argument_defaults
from rlpheads.engine.learner.parts import build_part
from rlpheads.engine.learner.schedule import Span
from rlpheads.engine.learner.shard_choice import obstacles_to_fusing
from rlpheads.engine.model.hub import leave_hub_if_silent, patience_with_servers
from rlpheads.engine.model.initial_weights import WeightsError, fit_weights
from rlpheads.engine.model.plan import ModelPlan, plan_model
from rlpheads.engine.plugins.loading import load_plugins
from rlpheads.engine.runs.weights_files import read_weights
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.sources.datasets import count_classes
from rlpheads.loaders.sources.synthetic import SyntheticSpec

_TIMM_LOADS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
_NOT_GIVEN = (*_TIMM_LOADS, "num_classes", "device", "dtype", "args", "kwargs")
_GIVEN_TWICE = re.compile(r"multiple values for (?:keyword )?argument '([^']+)'")
_UNEXPECTED = re.compile(r"unexpected keyword argument(?:\(s\):)? \[?'([^']+)'")


def name_errors(model: ModelConfig) -> Iterator[ConfigError]:
    """Yield an error for arguments that are not the model's to give, and for a name that timm does not know."""
    if "num_classes" in model.args:
        yield ConfigError("model.args: got num_classes, which the dataset decides; allowed: any other argument")
    if loads := [name for name in model.args if name in _TIMM_LOADS]:
        yield ConfigError(
            f"model.args: got {loads[0]}; weights to start from are given by model.pretrained or model.checkpoint"
        )
    architecture = model.name.partition(".")[0]  # vit_base_patch16_224.augreg_in1k names weights too
    if not timm.is_model(architecture):
        match = nearest(architecture, timm.list_models())
        hint = f" (nearest: {match})" if match else ""
        yield refusal(
            "model.name", model.name, f"a model of timm {timm.__version__}{hint}; timm.list_models() names them"
        )


def count_model_classes(data: DataConfig, plugins: Sequence[str]) -> int:
    """Return the number of classes of the images, which are not listed for it.

    Raises:
        ConfigError: the images are not there, or lie in another form.
    """
    try:
        if data.dataset == PLUGIN_DATASET:
            train, _ = load_plugins(plugins).open_images(data.root, 0)  # whatever the split, the classes are the same
            return len(train.manifest.classes)
        synthetic = SyntheticSpec(**asdict(data.synthetic), side=data.image_size)
        return count_classes(data.dataset, data.root, synthetic)
    except DatasetError as error:
        raise ConfigError(str(error)) from error


def check_classes(plan: ModelPlan, num_classes: int) -> None:
    """Make sure that the images, once listed, have as many classes as the model was planned for.

    Raises:
        ConfigError: they have not.
    """
    if num_classes != plan.num_classes:
        raise ConfigError(
            f"data.root: {plan.num_classes} classes were counted, but {num_classes} when the images were listed; "
            "start again once nothing changes the folder"
        )


def make_plan(config: Config, num_classes: int) -> ModelPlan:
    """Plan the configured model.

    Raises:
        ConfigError: it cannot be built, does not take such images, or lacks a place that a tap names.
    """
    try:
        return plan_model(config, num_classes)
    except ValueError as error:
        clearer = _unknown_argument(config.model, error.__cause__) or _argument_of_the_name(
            config.model, error.__cause__
        )
        raise clearer or ConfigError(f"model: {error}{_size_hint(config, num_classes)}") from error
    except Exception as error:  # timm computes with its arguments unchecked, and any exception may come of that
        given = f"got {show_value(config.model.name)} with model.args {show_value(config.model.args)}"
        raise ConfigError(f"model: {given}, which cannot be built: {type(error).__name__}: {error}") from error


def _size_hint(config: Config, num_classes: int) -> str:
    """Say how a model that does not take the images' sizes takes them, where timm can make it so; else nothing."""
    argument = "dynamic_img_size"
    if argument in config.model.args:
        return ""
    freed = replace(config.model, args=config.model.args | {argument: True})
    try:
        plan_model(replace(config, model=freed), num_classes)
    except Exception:  # what is wrong is told already
        return ""
    return (
        f" It takes several sizes, its position embeddings interpolated at each step, with --model.args.{argument} true; "
        "and another one alone with --model.args.img_size"
    )


def _unknown_argument(model: ModelConfig, error: BaseException | None) -> ConfigError | None:
    """Return an error with the nearest argument if `error` tells that the model does not take one that it was given."""
    found = _UNEXPECTED.search(str(error)) if isinstance(error, TypeError) else None
    if found is None:
        return None
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        architecture = type(timm.create_model(model.name))
    given, known = found[1], [name for name in inspect.signature(architecture).parameters if name not in _NOT_GIVEN]
    match = nearest(given, known)
    hint = f"nearest: {match}" if match else f"allowed: {', '.join(known)}"
    return ConfigError(f"model.args.{given}: no such argument of timm's {architecture.__name__}; {hint}")


def _argument_of_the_name(model: ModelConfig, error: BaseException | None) -> ConfigError | None:
    """Return an error if `error` tells that the model's name decides an argument that was given."""
    found = _GIVEN_TWICE.search(str(error)) if isinstance(error, TypeError) else None
    if found is None:
        return None
    return ConfigError(
        f"model.args.{found[1]}: got {show_value(model.args.get(found[1]))}, which the name {model.name} decides; leave it "
        "out: where a --config sets it for another model, take one of this model"
    )


def model_errors(config: Config, plan: ModelPlan, world_size: int) -> Iterator[ConfigError]:
    """Yield what keeps a model that can be built from being trained as configured."""
    yield from _batch_norm_errors(config, plan, world_size)
    if config.runtime.activation_checkpointing and not plan.supports_checkpointing:
        yield ConfigError(
            f"runtime.activation_checkpointing: got true, but timm's {config.model.name} does not offer it; allowed: false"
        )
    yield from preprocessing_errors(config)
    yield from _initial_weights_errors(config.model, plan)
    yield from _regularized_tap_errors(config, plan)


def optimizer_errors(config: Config, world_size: int) -> Iterator[ConfigError]:
    """Yield what keeps the optimizers of network and heads from being built."""
    for key, optim in (("optim", config.optim), ("heads.optim", config.heads.optim)):
        if wrong := list(_apex_errors(key, optim.name)):
            yield from wrong
        else:
            yield from _optimizer_errors(key, optim, config)
    yield from _shard_errors(config.heads)
    yield from _update_errors(config, world_size)


def _batch_norm_errors(config: Config, plan: ModelPlan, world_size: int) -> Iterator[ConfigError]:
    if not plan.has_batch_norm or config.model.frozen:
        return
    if world_size > 1 and not config.model.sync_batchnorm:
        yield ConfigError(
            f"model.name: got {show_value(config.model.name)}, whose batch norm keeps statistics of one rank's images; "
            "allowed on several ranks: --model.sync_batchnorm, or a model without batch norm"
        )
    if config.data.partial == "pad":
        yield refusal("data.partial", "pad", "drop for a network with batch norm, whose statistics padding would enter")


def _initial_weights_errors(model: ModelConfig, plan: ModelPlan) -> Iterator[ConfigError]:
    """Yield an error where the weights to start from are not there or do not fit."""
    if model.checkpoint is not None:
        try:
            fit_weights(plan.model.backbone, read_weights(model.checkpoint))
        except WeightsError as error:
            yield ConfigError(f"model.checkpoint: {error}")
    if model.pretrained:
        yield from _pretrained_errors(model)


def _pretrained_errors(model: ModelConfig) -> Iterator[ConfigError]:
    known = timm.get_pretrained_cfg(model.name, allow_unregistered=True)
    if known is None or not known.has_weights:
        tagged = timm.list_models(f"{model.name.partition('.')[0]}*", pretrained=True)
        match = nearest(model.name, tagged)
        yield ConfigError(
            f"model.pretrained: timm publishes no weights for {model.name}"
            + (f"; nearest: --model.name {match}" if match else "; a local file is given by model.checkpoint")
        )
        return
    silence = leave_hub_if_silent()
    try:
        with torch.random.fork_rng(devices=[]), patience_with_servers():
            timm.create_model(model.name, pretrained=True, **model.args)
    except Exception as error:  # the hub's client has many, and timm computes with what it fetched
        if silence is None:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        else:
            reason = f"they are not in {huggingface_hub.constants.HF_HUB_CACHE}, and {silence}"
        yield ConfigError(
            f"model.pretrained: the weights of {model.name} cannot be had: {reason}. Without access to the Hugging Face "
            "hub, fetch them elsewhere and give the file: --model.checkpoint FILE"
        )


def _regularized_tap_errors(config: Config, plan: ModelPlan) -> Iterator[ConfigError]:
    chosen = config.regularizer.taps
    if chosen == "all":
        return
    try:
        regularized = plan.model.select(chosen)
    except ValueError as error:
        yield ConfigError(f"model: {error}")
        return
    if not set(regularized) <= set(plan.places):
        yield refusal("regularizer.taps", chosen, f"taps that have a head: {list(plan.taps)}")


def _apex_errors(key: str, name: str) -> Iterator[ConfigError]:
    """Yield an error where what timm's `fused...` optimizers need is not here: NVIDIA's apex, and a GPU."""
    if not name.startswith("fused"):
        return
    close = name.removeprefix("fused")
    instead = f"torch's own fused step comes with {close}" if close in ("adam", "adamw", "sgd") else "another optimizer"
    remedy = f"allowed here: {key}.name without fused ({instead})"
    if importlib.util.find_spec("apex") is None:
        yield ConfigError(
            f"{key}.name: got {show_value(name)}, which needs NVIDIA's apex, built from its source; it is not installed; "
            f"{remedy}"
        )
    elif importlib.util.find_spec("apex.optimizers") is None:
        yield ConfigError(
            f"{key}.name: got {show_value(name)}, which needs NVIDIA's apex, but the apex that is installed is the unrelated "
            f"package of that name in the registry: remove it (pip uninstall apex), and build NVIDIA's; {remedy}"
        )
    elif not torch.cuda.is_available():
        yield ConfigError(
            f"{key}.name: got {show_value(name)}, whose kernels need a CUDA device, and there is none; {remedy}"
        )


def _optimizer_errors(key: str, optim: OptimConfig, config: Config) -> Iterator[ConfigError]:
    known = timm.optim.list_optimizers()
    if optim.name not in known:
        match = nearest(optim.name, known)
        hint = f" (nearest: {match})" if match else ""
        yield refusal(f"{key}.name", optim.name, f"an optimizer of timm{hint}; timm.optim.list_optimizers() names them")
    elif timm.optim.get_optimizer_info(optim.name).second_order:
        yield refusal(f"{key}.name", optim.name, "an optimizer that needs first-order gradients only, such as adamw")
    elif wrong := list(_argument_errors(key, optim)):
        yield from wrong
    elif (problem := _building_problem(optim, config)) is not None:
        by_args = optim.args and _building_problem(replace(optim, args={}), config) is None
        yield ConfigError(f"{key}.{'args' if by_args else 'name'}: {optim.name} cannot be built here: {problem}")


def _building_problem(optim: OptimConfig, config: Config) -> Exception | None:
    """Return what timm or torch raises when this optimizer is built for one layer."""
    try:
        with torch.random.fork_rng(devices=[]):
            one_layer = replace(optim, layer_decay=None)  # timm would warn of it
            build_part(nn.Linear(2, 2), one_layer, config.schedule, Span(config.epochs, 2), ddp=False)
    except (ValueError, TypeError, AssertionError, RuntimeError, ImportError) as error:
        return error
    return None


def _update_errors(config: Config, world_size: int) -> Iterator[ConfigError]:
    """Yield what keeps heads from being updated as their gradients are made, where that is asked for."""
    if config.heads.update == "fused":
        is_averaged = world_size > 1 and config.heads.shard == "none"
        for obstacle in obstacles_to_fusing(config, is_averaged=is_averaged):
            allowed = f"{obstacle.allowed} with heads.update fused: {obstacle.reason}"
            yield refusal(obstacle.key, obstacle.given, allowed)


def _argument_errors(key: str, optim: OptimConfig) -> Iterator[ConfigError]:
    """Yield an error for each of an optimizer's arguments that it does not take, or not of this kind."""
    known = argument_defaults(optim.name)
    for name, value in optim.args.items():
        if name in OWN_KEYS:
            yield ConfigError(f"{key}.args: got {name}, which has a key of its own: {key}.{name}")
        elif name not in known:
            match = nearest(name, known)
            hint = f" (nearest: {match})" if match else ""
            allowed = f"an argument of {optim.name}{hint}: {', '.join(known) or 'it takes none here'}"
            yield refusal(f"{key}.args", name, allowed)
        elif not _is_like(value, known[name]):
            yield refusal(
                f"{key}.args.{name}", value, f"something like {show_value(known[name])}, which it is otherwise"
            )
        elif name == "betas" and isinstance(value, list) and not all(_is_decay_rate(each) for each in value):
            yield refusal(f"{key}.args.betas", value, "numbers from 0 to below 1")  # timm's own optimizers take any
        elif name == "eps" and isinstance(value, (int, float)) and not 0 <= value < math.inf:
            yield refusal(f"{key}.args.eps", value, "a number of at least 0")
    betas = optim.args.get("betas")
    if isinstance(betas, list) and optim.momentum not in (OptimConfig.momentum, betas[0]):
        yield refusal(f"{key}.momentum", optim.momentum, f"what {key}.args.betas begins with, or only one of the two")


def _is_decay_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def _is_like(value: Any, default: Any) -> bool:
    """Whether a setting can stand for an argument whose default is this; of None nothing is known."""
    if default is None:
        return True
    if isinstance(default, (bool, str)):
        return type(value) is type(default)
    if isinstance(default, (tuple, list)):
        pairs = zip(value, default, strict=True) if isinstance(value, list) and len(value) == len(default) else None
        return pairs is not None and all(_is_like(*pair) for pair in pairs)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shard_errors(heads: HeadsConfig) -> Iterator[ConfigError]:
    """Yield what keeps a range of the classes from learning what it would in the whole head."""
    if heads.shard != "class":
        return
    if heads.optim.name not in ELEMENTWISE and heads.optim.name in timm.optim.list_optimizers():
        match = nearest(heads.optim.name, ELEMENTWISE)
        hint = f" (nearest: {match})" if match else ""
        allowed = f"one of {', '.join(sorted(ELEMENTWISE))}{hint} with heads.shard class: others look at whole matrices"
        yield refusal("heads.optim.name", heads.optim.name, allowed)
    if heads.optim.clip_agc is not None:
        allowed = "null with heads.shard class, which holds no whole matrix; clip_norm and clip_value can be used"
        yield refusal("heads.optim.clip_agc", heads.optim.clip_agc, allowed)
