"""Flags that cannot be read, each with its message, and the words that many such messages share."""

from rlpheads.engine.config.files import SHIPPED

WHOLE = "a whole number (10, not 10.0 or 1e1)"
PLAIN = "a mapping of names to null, true, false, finite numbers, text, or lists and mappings of these"
OPTIM_KEYS = (
    "optim.name, optim.args, optim.lr, optim.base_batch_size, optim.batch_scaling, optim.weight_decay, optim.momentum, "
    "optim.layer_decay, optim.clip_norm, optim.clip_value, optim.clip_agc"
)
DATASETS = "digits, patches, synthetic, imagefolder, cifar10, cifar100 or plugin"
AUGMENT_POLICIES = "none, rand, trivial, auto_imagenet, auto_cifar10 or three"
FILLS = "noise, color or mean"
SUBSET_KEYS = "data.subset.fraction, data.subset.per_class, data.subset.imbalance"
PLACES = "all, none, inside or a list of whole numbers and texts such as [0, 3.attn]"
MODEL_FLAGS = (
    "--model.name, --model.args, --model.pretrained, --model.checkpoint, --model.frozen, --model.sync_batchnorm, "
    "--model.loss, --model.bce_threshold, --model.label_smoothing, --model.ema_decay, --model.ema"
)

FLAGS = [
    (["--epohcs", "3"], "--epohcs: no such key; nearest: --epochs"),
    (["--epoch", "3"], "--epoch: no such key; nearest: --epochs"),
    (["-epochs", "3"], "-epochs: no such key; nearest: --epochs"),
    (["--batch-size", "8"], "--batch-size: no such key; nearest: --batch_size"),
    (["--batchsize", "8"], "--batchsize: no such key; nearest: --batchSize"),
    (["--batchSize", "8.5"], f"--batchSize: got '8.5'; allowed: {WHOLE}"),
    (["--reg", "strong"], "--reg: got 'strong'; allowed: a finite number"),
    (["--reg"], "--reg: a value is missing; allowed: a finite number"),
    (["--ViTSize", "M"], "--ViTSize: got 'M'; allowed: S, B or L"),
    (["--contin", "maybe"], "--contin: got 'maybe'; allowed: true or false"),
    (["--dataset", "CIFAR"], f"--dataset: got 'CIFAR'; allowed: {DATASETS} (nearest: cifar10)"),
    (["--ifile"], "--ifile: a value is missing; allowed: the name of a YAML or TOML file"),
    (["--ifile", "nowhere/x.toml"], "nowhere/x.toml: no such file (nor a folder nowhere)"),
    (["--lr", "1"], "--lr: no such key; nearest: --heads.optim.lr, --optim.lr"),
    (["--confg", "x.yaml"], "--confg: no such key; nearest: --config"),
    (["--"], "--: no such key; --help lists every key"),
    (["--run.name.x", "a"], "--run.name.x: no such key; nearest: --run.name"),
    (["--model.args..depth", "6"], "--model.args..depth: no such key; nearest: --model.args"),
    (["--heads.taps+", "3"], "--heads.taps+: no such key; nearest: --heads.taps"),
    (["--model", "[WRN]"], f"--model: got '[WRN]', but this is a group; allowed: the keys in it: {MODEL_FLAGS}"),
    (["--model={name: x}"], f"--model: got '{{name: x}}', but this is a group; allowed: the keys in it: {MODEL_FLAGS}"),
    (["--model"], f"--model: got null, but this is a group; allowed: the keys in it: {MODEL_FLAGS}"),
    (["--epochs"], f"--epochs: a value is missing; allowed: {WHOLE}"),
    (["--epochs", "--verbose"], f"--epochs: a value is missing; allowed: {WHOLE}"),
    (["--verbose", "--config"], "--config: a value is missing; allowed: the name of a YAML or TOML file"),
    (["--config="], "--config: a value is missing; allowed: the name of a YAML or TOML file"),
    (["--epochs="], f"--epochs: got ''; allowed: {WHOLE}"),
    (["--max_steps="], f"--max_steps: got ''; allowed: {WHOLE} or null"),
    (["--max_steps", "# 3"], f"--max_steps: got '# 3'; allowed: {WHOLE} or null"),
    (["--epochs", "1e1"], f"--epochs: got '1e1'; allowed: {WHOLE}"),
    (["--epochs", "null"], f"--epochs: got 'null'; allowed: {WHOLE}"),
    (["--epochs", "[1"], f"--epochs: got '[1'; allowed: {WHOLE}"),
    (["--optim.lr", "inf"], "--optim.lr: got 'inf'; allowed: a finite number"),
    (["--optim.lr", ".nan"], "--optim.lr: got '.nan'; allowed: a finite number"),
    (["--verbose", "yes"], "--verbose: got 'yes'; allowed: true or false"),
    (["--verbose", "1"], "--verbose: got '1'; allowed: true or false"),
    (["--heads.taps", "0,"], f"--heads.taps: got '0,'; allowed: {PLACES}"),
    (["--heads.taps", "al"], f"--heads.taps: got 'al'; allowed: {PLACES} (nearest: all)"),
    (["--data.crop_scale", "0.3"], "--data.crop_scale: got '0.3'; allowed: a list of 2 finite numbers"),
    (["--data.crop_scale", "0.3,x"], "--data.crop_scale: got '0.3,x'; allowed: a list of 2 finite numbers"),
    (["--epochs", "3,4"], f"--epochs: got '3,4'; allowed: {WHOLE}"),
    (["--data.dataset", "Digit"], f"--data.dataset: got 'Digit'; allowed: {DATASETS} (nearest: digits)"),
    (["--model.args", "6"], f"--model.args: got '6'; allowed: {PLAIN}"),
    (["--run.name", "a\udcff"], "--run.name: got 'a\\udcff'; allowed: text"),
    (["stray"], "stray: not a flag; allowed: --KEY VALUE"),
    (["epochs=3"], "epochs=3: not a flag; allowed: --KEY VALUE (meant: --epochs=3)"),
    (["x.yaml"], "x.yaml: not a flag; allowed: --KEY VALUE (meant: --config x.yaml)"),
    (["--epochs", "3", "4"], "4: not a flag; allowed: --KEY VALUE"),
    (
        ["--config", "x.json"],
        "--config: got 'x.json'; allowed: a file that ends in .yaml, .yml, .toml, or one that comes with rlpheads: "
        f"{', '.join(sorted(path.stem for path in SHIPPED.glob('*.*ml')))}",
    ),
    (["--config", "nowhere/x.yaml"], "nowhere/x.yaml: no such file (nor a folder nowhere)"),
]
