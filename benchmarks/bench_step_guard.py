"""What watching over a training costs: in every step norms and the look for what is not finite, now and then a hash.

python benchmarks/bench_step_guard.py           # 86 million weights, batches of 4 and 32, 10 rounds: about 6 minutes
python benchmarks/bench_step_guard.py --quick   # batches of 4, 3 rounds: about a minute

The engine's own step trains a ViT with AdamW on the digits. Rounds alternate between a few steps as they are and the same steps
without the judgement of their update (norms, finiteness), in an order that rotates. Beside it the hash by which ranks are
compared, once in `stability.drift_every` steps, as one call. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from bench_checkpoint import MODEL, SMALL, batches, build
from measuring import Results, interleave, ratio, ratio_interval

from rlpheads.engine.distributed import launch
from rlpheads.engine.gauges.replicas import bit_sum
from rlpheads.engine.learner import step
from rlpheads.engine.learner.parts import TrainedPart
from rlpheads.engine.learner.update_guard import Verdict
from rlpheads.engine.training.training import Training
from rlpheads.loaders.contract.batch import Batch

STEPS = 3
HASHES = 5


def judge_nothing(parts: Mapping[str, TrainedPart], *_: object) -> dict[str, Verdict]:
    """Take every update, without a look at it."""
    zero = torch.zeros(())
    return {name: Verdict(zero, zero > 0) for name in parts}


def steps_on(training: Training, stream: Iterator[Batch]) -> Callable[[], None]:
    """Return a call that takes some steps."""

    def train() -> None:
        for _ in range(STEPS):
            training.train_on(next(stream))
        training.gauges.meters.begin_read(training.num_updates)
        training.gauges.meters.finish_read()

    return train


def measure(batch_size: int, rounds: int, model: dict[str, int]) -> dict[str, Any]:
    """Time steps with and without the judgement of their updates, and the hash of the weights."""
    with tempfile.TemporaryDirectory() as folder, launch.start("cpu") as launched:
        training = build(Path(folder), launched, model, batch_size)
        guarded = steps_on(training, batches(training))

        def unguarded() -> None:
            with mock.patch.object(step, "judge", judge_nothing):
                guarded()

        training.learner.train()
        seconds = interleave({"with": guarded, "without": unguarded}, rounds)
        weights = training.learner.trained_parts["backbone"].replicated_parameters()
        hashes = interleave({"hash": lambda: bit_sum(weights)}, HASHES)["hash"]
        return {
            "seconds": {name: [each / STEPS for each in times] for name, times in seconds.items()},
            "with_over_without": ratio(seconds["with"], seconds["without"]),
            "interval": ratio_interval(seconds["with"], seconds["without"]),
            "hash_seconds": median(hashes),
            "weights": sum(weight.numel() for weight in weights),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batches of 4, 3 rounds")
    parser.add_argument("--small", action="store_true", help="a small network: does it run?")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    sizes, rounds = ((4,), 3) if arguments.quick else ((4, 32), 10)
    model, lines = SMALL if arguments.small else MODEL, []
    results = Results("step_guard", "cpu", arguments.out)
    for batch_size in sizes:
        case = {"batch_size": batch_size, "rounds": rounds, "model": model}
        found = results.measure(partial(measure, batch_size, rounds, model), **case)
        low, high = found["interval"]
        times = {name: median(each) for name, each in found["seconds"].items()}
        lines.append(
            f"{found['weights'] / 1e6:.1f} million weights, batches of {batch_size}: a step {times['with']:.3f} s, without "
            f"the judgement {times['without']:.3f} s: {found['with_over_without']:.3f} [{low:.3f}, {high:.3f}]; "
            f"a hash {found['hash_seconds']:.3f} s, in 100 steps {found['hash_seconds'] / times['with'] / 100:.2%} of them"
        )
    text = "\n".join(lines) + "\n"
    print(text, end="")
    results.write("figures.txt", text)


if __name__ == "__main__":
    main()
