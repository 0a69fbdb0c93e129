"""Settings that are refused before anything starts, each with its message; kinds by what finds them."""

from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"
DIGITS = ["--config", str(CONFIGS / "digits_vit.yaml"), "--device", "cpu"]

NUMBERS = [
    (["--seed", "-1"], "seed: got -1; allowed: a number at least 0 and at most 9223372036854775807"),
    (["--epochs", "0"], "epochs: got 0; allowed: a number at least 1"),
    (["--max_steps", "0"], "max_steps: got 0; allowed: a number at least 1"),
    (["--batch_size", "1"], "batch_size: got 1; allowed: a number at least 2"),
    (["--accumulate", "0"], "accumulate: got 0; allowed: a number at least 1"),
    (["--data.workers", "-1"], "data.workers: got -1; allowed: a number at least 0"),
    (
        ["--data.dali.hardware_share", "2"],
        "data.dali.hardware_share: got 2.0; allowed: a number at least 0 and at most 1",
    ),
    (
        ["--data.dali.largest_image", "[0, 5980]"],
        "data.dali.largest_image: got (0, 5980); allowed: a height and a width, or [0, 0]",
    ),
    (
        ["--data.loader", "dali", "--data.dali.decode", "gpu", "--device", "cpu"],
        "data.dali.decode: got 'gpu'; allowed: auto or cpu where the model is not on a GPU",
    ),
    (["--data.image_size", "0"], "data.image_size: got 0; allowed: a number at least 1"),
    (
        ["--data.repeats", "3"],
        "data.repeats: got 3; allowed: a divisor of batch_size, 32, at most half of it (nearest: 2)",
    ),
    (
        ["--data.repeats", "2", "--data.partial", "pad"],
        "data.partial: got 'pad'; allowed: drop with data.repeats above 1: each repeat has its place in a batch",
    ),
    (
        ["--data.repeats", "2", "--data.on_error", "skip"],
        "data.on_error: got 'skip'; allowed: raise with data.repeats above 1: each repeat has its place in a batch",
    ),
    (["--eval.image_size", "0"], "eval.image_size: got 0; allowed: a number at least 1"),
    (
        ["--data.progressive.first_size", "8"],
        "data.progressive.first_size: got 8; allowed: a multiple of data.progressive.multiple, 32 (nearest: 32)",
    ),
    (
        ["--data.progressive.first_size", "8", "--data.progressive.multiple", "4", "--data.progressive.end_epoch", "9"],
        "data.progressive.first_size: got 8; allowed: less than data.image_size, 8, to which images grow",
    ),
    (
        ["--data.progressive.first_size", "4", "--data.progressive.multiple", "4"],
        "data.progressive.end_epoch: got null; allowed: an epoch from 1 to 39 with data.progressive.first_size",
    ),
    (
        [
            *("--data.progressive.first_size", "4", "--data.progressive.multiple", "4"),
            *("--data.progressive.start_epoch", "39", "--data.progressive.end_epoch", "40"),
        ],
        "data.progressive.start_epoch: got 39; allowed: an epoch before the last, 39: images grow after it",
    ),
    (
        ["--data.progressive.end_epoch", "3"],
        "data.progressive.end_epoch: got 3; allowed: null while data.progressive.first_size is null: every epoch has "
        "data.image_size",
    ),
    (
        [
            *("--data.progressive.first_size", "1", "--data.progressive.multiple", "1", "--runtime.compile", "true"),
            *("--data.progressive.end_epoch", "39"),
        ],
        "data.progressive.multiple: got 1; allowed: a larger one with runtime.compile: each of the 8 sizes has a graph of its "
        "own, and torch makes graphs for 6 at most",
    ),
    (["--data.val_fraction", "1"], "data.val_fraction: got 1.0; allowed: a number above 0 and below 1"),
    (["--data.val_fraction", "0"], "data.val_fraction: got 0.0; allowed: a number above 0 and below 1"),
    (["--data.hflip", "1.5"], "data.hflip: got 1.5; allowed: a number at least 0 and at most 1"),
    (["--data.crop_scale", "[0, 1]"], "data.crop_scale: got (0.0, 1.0); allowed: numbers above 0 and at most 1"),
    (["--data.crop_scale", "[0.5, 1.1]"], "data.crop_scale: got (0.5, 1.1); allowed: numbers above 0 and at most 1"),
    (
        ["--data.crop_scale", "[1, 0.5]"],
        "data.crop_scale: got (1.0, 0.5); allowed: the smaller number first: [0.5, 1.0]",
    ),
    (["--data.crop_ratio", "[0, 1]"], "data.crop_ratio: got (0.0, 1.0); allowed: numbers above 0"),
    (
        ["--data.crop_ratio", "[2, 0.5]"],
        "data.crop_ratio: got (2.0, 0.5); allowed: the smaller number first: [0.5, 2.0]",
    ),
    (["--data.crop_padding", "0"], "data.crop_padding: got 0; allowed: a number at least 1"),
    (["--data.subset.fraction", "0"], "data.subset.fraction: got 0.0; allowed: a number above 0 and at most 1"),
    (["--data.subset.per_class", "0"], "data.subset.per_class: got 0; allowed: a number at least 1"),
    (["--data.subset.imbalance", "0.1"], "data.subset.imbalance: got 0.1; allowed: a number at least 1"),
    (
        ["--data.dataset", "synthetic", "--data.synthetic.val", "7"],
        "data.synthetic.val: got 7; allowed: at least data.synthetic.classes, 10",
    ),
    (["--data.synthetic.classes", "1"], "data.synthetic.classes: got 1; allowed: a number at least 2"),
    (
        ["--data.augment.rand_magnitude", "31"],
        "data.augment.rand_magnitude: got 31.0; allowed: a number at least 0 and at most 30",
    ),
    (
        ["--data.augment.color_jitter", "[0.4, 0.4, 0.4, 0.6]"],
        "data.augment.color_jitter: got (0.4, 0.4, 0.4, 0.6); allowed: a hue, the last number, of at most 0.5",
    ),
    (
        ["--data.augment.policy", "three", "--data.image_size", "6"],
        "data.augment.policy: got 'three'; allowed: another policy for images of 6 pixels or less, which it cannot blur",
    ),
    (["--data.mix.mixup", "-1"], "data.mix.mixup: got -1.0; allowed: a number at least 0"),
    (["--data.mix.switch", "2"], "data.mix.switch: got 2.0; allowed: a number at least 0 and at most 1"),
    (
        ["--data.mix.cutmix_minmax", "[0.2, 1.5]"],
        "data.mix.cutmix_minmax: got (0.2, 1.5); allowed: numbers at least 0 and at most 1",
    ),
    (
        ["--data.mix.cutmix_minmax", "[0.8, 0.2]"],
        "data.mix.cutmix_minmax: got (0.8, 0.2); allowed: the smaller number first: [0.2, 0.8]",
    ),
    (
        ["--data.mix.cutmix_minmax", "[0.2, 0.8]", "--data.mix.cutmix", "1"],
        "data.mix.cutmix: got 1.0; allowed: 0 where data.mix.cutmix_minmax says how large the boxes are",
    ),
    (["--data.mix.off_epoch", "-1"], "data.mix.off_epoch: got -1; allowed: a number at least 0"),
    (
        ["--model.bce_threshold", "0.2"],
        "model.bce_threshold: got 0.2; allowed: null while model.loss is cross_entropy",
    ),
    (
        ["--model.loss", "bce", "--model.bce_threshold", "0.2", "--model.label_smoothing", "0.1"],
        "model.bce_threshold: got 0.2; allowed: null with model.label_smoothing, whose smoothed targets it would only "
        "make 0 or 1 again",
    ),
    (["--data.augment.cutout", "-1"], "data.augment.cutout: got -1; allowed: a number at least 0"),
    (["--data.augment.erase", "2"], "data.augment.erase: got 2.0; allowed: a number at least 0 and at most 1"),
    (
        ["--data.augment.erase_area", "[0.3, 0.1]"],
        "data.augment.erase_area: got (0.3, 0.1); allowed: the smaller number first: [0.1, 0.3]",
    ),
    (
        ["--data.eval_crop_fraction", "0"],
        "data.eval_crop_fraction: got 0.0; allowed: a number at least 0.05 and at most 1",
    ),
    (
        ["--data.mean", "[124, 116, 104]"],
        "data.mean: got (124.0, 116.0, 104.0); allowed: numbers at least 0 and at most 1",
    ),
    (["--data.std", "[0, 1, 1]"], "data.std: got (0.0, 1.0, 1.0); allowed: numbers above 0 and at most 1"),
    (["--model.label_smoothing", "1"], "model.label_smoothing: got 1.0; allowed: a number at least 0 and below 1"),
    (
        ["--model.ema.every", "4"],
        "model.ema.every: got 4; allowed: 1 while model.ema_decay is null: there is no average",
    ),
    (
        ["--loss_scale.initial", "0"],
        "loss_scale.initial: got 0.0; allowed: a number above 0 and at most 18446744073709551616",
    ),
    (
        ["--early_stopping.metric", "eval_ema_loss"],
        "early_stopping.metric: got 'eval_ema_loss'; allowed: eval_top1 or eval_loss while model.ema_decay is null: there is "
        "no average",
    ),
    (["--early_stopping.patience", "0"], "early_stopping.patience: got 0; allowed: a number at least 1"),
    (["--runtime.profile.first", "-1"], "runtime.profile.first: got -1; allowed: a number at least 0"),
    (["--model.ema_decay", "1"], "model.ema_decay: got 1.0; allowed: a number above 0 and below 1"),
    (["--optim.lr", "0"], "optim.lr: got 0.0; allowed: a number above 0"),
    (["--optim.momentum", "1"], "optim.momentum: got 1.0; allowed: a number at least 0 and below 1"),
    (["--optim.weight_decay", "-0.1"], "optim.weight_decay: got -0.1; allowed: a number at least 0"),
    (["--optim.clip_norm", "0"], "optim.clip_norm: got 0.0; allowed: a number above 0"),
    (["--heads.optim.lr", "-1"], "heads.optim.lr: got -1.0; allowed: a number above 0"),
    (["--heads.labels", "1"], "heads.labels: got 1; allowed: a number at least 2 and at most 2147483647"),
    (["--heads.draws", "0"], "heads.draws: got 0; allowed: a number at least 1 and at most 10000"),
    (["--heads.hidden", "0"], "heads.hidden: got 0; allowed: a number at least 1"),
    (["--heads.dropout", "1"], "heads.dropout: got 1.0; allowed: a number at least 0 and below 1"),
    (["--heads.joint", "-1"], "heads.joint: got -1.0; allowed: a number at least 0"),
    (["--regularizer.factor", "-1"], "regularizer.factor: got -1.0; allowed: a number at least 0"),
    (
        ["--schedule.min_lr_fraction", "2"],
        "schedule.min_lr_fraction: got 2.0; allowed: a number at least 0 and at most 1",
    ),
    (["--eval.batch_size", "0"], "eval.batch_size: got 0; allowed: a number at least 1"),
    (["--checkpoint.keep", "0"], "checkpoint.keep: got 0; allowed: a number at least 1"),
]

NUMBERS += [
    (["--optim.base_batch_size", "0"], "optim.base_batch_size: got 0; allowed: a number at least 1"),
    (["--optim.layer_decay", "0"], "optim.layer_decay: got 0.0; allowed: a number above 0 and at most 1"),
    (["--optim.clip_value", "0"], "optim.clip_value: got 0.0; allowed: a number above 0"),
    (["--heads.optim.clip_agc", "-1"], "heads.optim.clip_agc: got -1.0; allowed: a number above 0"),
    (["--schedule.cycles", "0"], "schedule.cycles: got 0; allowed: a number at least 1"),
    (["--schedule.cycle_decay", "0"], "schedule.cycle_decay: got 0.0; allowed: a number above 0 and at most 1"),
    (["--schedule.decay_every", "0"], "schedule.decay_every: got 0.0; allowed: a number above 0"),
    (["--schedule.decay_rate", "2"], "schedule.decay_rate: got 2.0; allowed: a number above 0 and at most 1"),
    (["--schedule.cooldown_epochs", "40"], "schedule.cooldown_epochs: got 40.0; allowed: less than the epochs, 40"),
    (
        ["--schedule.name", "multistep"],
        "schedule.milestones: got []; allowed: the epochs at which the rate drops with multistep, and [] without it",
    ),
    (
        ["--schedule.milestones", "[3]"],
        "schedule.milestones: got [3.0]; allowed: the epochs at which the rate drops with multistep, and [] without it",
    ),
    (
        ["--schedule.name", "multistep", "--schedule.milestones", "[5, 3]"],
        "schedule.milestones: got [5.0, 3.0]; allowed: numbers in ascending order",
    ),
    (["--schedule.name", "step", "--schedule.cycles", "2"], "schedule.cycles: got 2; allowed: 1 with step"),
    (
        ["--schedule.name", "constant", "--schedule.cooldown_epochs", "1"],
        "schedule.cooldown_epochs: got 1.0; allowed: 0 with constant",
    ),
    (
        ["--optim.clip_norm", "1", "--optim.clip_agc", "0.01"],
        "optim: got clip_norm and clip_agc; allowed: one way of clipping",
    ),
    (["--heads.optim.layer_decay", "0.9"], "heads.optim.layer_decay: got 0.9; allowed: null: heads have no layers"),
]

NO_SLASH = "the name of one folder, without / or \\ (run.dir says where it lies)"
NO_HEADS = "0 without heads (heads.taps is none); heads at all blocks: heads.taps all"
CONTRADICTIONS = [
    (["--run.name", "a/b"], f"run.name: got 'a/b'; allowed: {NO_SLASH}"),
    (["--run.name", ".."], f"run.name: got '..'; allowed: {NO_SLASH}"),
    (["--run.name", "a\nb"], f"run.name: got 'a\\nb'; allowed: {NO_SLASH}"),
    (["--run.name", "é" * 101], f"run.name: got '{'é' * 101}'; allowed: at most 200 bytes"),
    (["--run.dir="], "run.dir: got ''; allowed: the name of a folder; . is the current one"),
    (
        ["--run.resume", "must", "--run.overwrite"],
        "run.resume: got must, but run.overwrite deletes what would be resumed; allowed: one of the two",
    ),
    (["--data.root", "images"], "data.root: got 'images'; allowed: null for digits, which come with scikit-learn"),
    (
        ["--data.dataset", "patches", "--data.root", "images"],
        "data.root: got 'images'; allowed: null for patches, which come with scikit-image and scikit-learn",
    ),
    (
        ["--data.dataset", "cifar100"],
        "data.root: got null; allowed: the folder of the images, which cifar100 needs: --data.root FOLDER"
        "; with --data.download too it is fetched there",
    ),
    (
        ["--data.crop", "pad", "--data.crop_padding", "1000000000"],
        "data.crop_padding: got 1000000000; allowed: at most data.image_size, 8",
    ),
    (["--data.download"], "data.download: got true; allowed: false: only cifar10 and cifar100 can be fetched"),
    (
        ["--data.subset.fraction", "0.5", "--data.subset.per_class", "10"],
        "data.subset.fraction: got 0.5; allowed: 1 where data.subset.per_class says how many",
    ),
    (
        ["--data.stage", "/tmp"],
        "data.stage: got '/tmp'; allowed: null for digits: only the files of an imagefolder and those of a store are copied",
    ),
    (
        ["--data.stage", ""],
        "data.stage: got ''; allowed: the name of a folder on the node's own disk, or null",
    ),
    (
        ["--data.dataset", "imagefolder"],
        "data.root: got null; allowed: the folder of the images, which imagefolder needs: --data.root FOLDER",
    ),
    (
        ["--regularizer.factor", "1", "--heads.taps", "none"],
        f"regularizer.factor: got 1.0; allowed: {NO_HEADS}",
    ),
    (
        ["--heads.joint", "1", "--heads.taps", "none"],
        f"heads.joint: got 1.0; allowed: {NO_HEADS}",
    ),
    (["--heads.taps", "[]"], "heads.taps: got []; allowed: all or at least one place, or none"),
    (["--regularizer.taps", "[]"], "regularizer.taps: got []; allowed: all or at least one place"),
]

NAMES = [
    (
        ["--model.name", "vit_tinny_patch16_224"],
        "(nearest: vit_tiny_patch16_224); timm.list_models() names them",
    ),
    (["--model.name", "VIT_TINY_PATCH16_224"], "(nearest: vit_tiny_patch16_224); timm.list_models() names them"),
    (
        ["--model.args.num_classes", "3"],
        "model.args: got num_classes, which the dataset decides; allowed: any other argument",
    ),
    (
        ["--model.args.bogus", "1"],
        "embed_norm_layer, norm_layer, act_layer, block_fn, mlp_layer, attn_layer",
    ),
    (
        ["--model.args.embed_dims", "48"],
        "model.args.embed_dims: no such argument of timm's VisionTransformer; nearest: embed_dim",
    ),
    (
        ["--model.name", "vit_small_patch32_224.augreg_in21k_ft_in1k", "--model.args.drop_rates", "0.1"],
        "model.args.drop_rates: no such argument of timm's VisionTransformer; nearest: drop_rate",
    ),
    (
        ["--model.name", "wrn_16_4"],
        "model.args.depth: got 6, which the name wrn_16_4 decides; leave it out: where a --config sets it for another model, "
        "take one of this model",
    ),
    (["--model.args.num_heads", "0"], "which cannot be built: ZeroDivisionError: integer modulo by zero"),
    (
        ["--data.image_size", "32"],
        "does not take images of 32 x 32 pixels: Input height (32) doesn't match model (8). It takes several sizes, its "
        "position embeddings interpolated at each step, with --model.args.dynamic_img_size true; and another one alone with "
        "--model.args.img_size",
    ),
    (["--heads.taps", "[6]"], "the network has 6 blocks, 0 to 5, or -6 to -1 from the end; the nearest is 5"),
    (["--regularizer.taps", "[-7]"], "the network has 6 blocks, 0 to 5, or -6 to -1 from the end; the nearest is -6"),
    (
        ["--heads.taps", "[0, 5]", "--regularizer.taps", "[-2]"],
        "regularizer.taps: got [-2]; allowed: taps that have a head: [0, 5]",
    ),
    (
        ["--optim.name", "adamww"],
        "allowed: an optimizer of timm (nearest: adamw); timm.optim.list_optimizers() names them",
    ),
    (
        ["--heads.optim.name", "sdg"],
        "allowed: an optimizer of timm (nearest: sgd); timm.optim.list_optimizers() names them",
    ),
    (
        ["--optim.args.epsilon", "1e-6"],
        "optim.args: got 'epsilon'; allowed: an argument of adamw (nearest: eps): betas, eps, amsgrad",
    ),
    (["--heads.optim.args.lr", "0.1"], "heads.optim.args: got lr, which has a key of its own: heads.optim.lr"),
    (
        ["--optim.name", "lamb", "--optim.args.betas", "[0.9, 1.5]"],
        "optim.args.betas: got [0.9, 1.5]; allowed: numbers from 0 to below 1",
    ),
    (["--optim.args.eps", "true"], "optim.args.eps: got true; allowed: something like 1e-08, which it is otherwise"),
    (
        ["--optim.args.betas", "[0.8]"],
        "optim.args.betas: got [0.8]; allowed: something like (0.9, 0.999), which it is otherwise",
    ),
    (["--optim.name", "lamb", "--optim.args.eps", "-1"], "optim.args.eps: got -1; allowed: a number of at least 0"),
    (
        ["--optim.name", "sgd", "--optim.args.dampening", "0.5"],
        "optim.args: sgd cannot be built here: Nesterov momentum requires a momentum and zero dampening",
    ),
    (
        ["--optim.momentum", "0.8", "--optim.args.betas", "[0.7, 0.9]"],
        "optim.momentum: got 0.8; allowed: what optim.args.betas begins with, or only one of the two",
    ),
    (
        ["--optim.name", "adahessian"],
        "optim.name: got 'adahessian'; allowed: an optimizer that needs first-order gradients only, such as adamw",
    ),
    (
        ["--heads.shard", "class", "--heads.optim.name", "lamb"],
        "rmsproptf, sgd with heads.shard class: others look at whole matrices",
    ),
    (
        ["--heads.shard", "class", "--heads.optim.clip_agc", "0.1"],
        "heads.optim.clip_agc: got 0.1; allowed: null with heads.shard class, which holds no whole matrix; clip_norm and "
        "clip_value can be used",
    ),
    (
        ["--heads.update", "fused", "--accumulate", "2"],
        "accumulate: got 2; allowed: 1 with heads.update fused: micro-batches sum their gradients first",
    ),
    (
        ["--heads.update", "fused", "--heads.optim.name", "muon"],
        "sgd with heads.update fused: others look at a head's whole gradient (muon's authors keep heads on adamw)",
    ),
    (
        ["--heads.update", "fused", "--heads.optim.clip_value", "0.1"],
        "heads.optim.clip_value: got 0.1; allowed: null with heads.update fused: it looks at gradients that are kept nowhere; "
        "clip_norm can be used",
    ),
]
