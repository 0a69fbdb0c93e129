"""A training in progress: what the loop drives, and how far it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlpheads.engine.gauges.gauges import Gauges
from rlpheads.engine.gauges.meters import PartialWindow
from rlpheads.engine.learner.fresh_refit import FreshRefit
from rlpheads.engine.learner.learner import Learner
from rlpheads.engine.learner.overhead import Overhead, num_timed_pairs, time_heads
from rlpheads.engine.learner.split import Split
from rlpheads.engine.learner.step import TrainStep
from rlpheads.engine.plugins.events import announce
from rlpheads.engine.runs import checkpoint
from rlpheads.engine.runs.checkpoint_saver import CheckpointSaver
from rlpheads.engine.runs.finite_content import NonfiniteStateError, check_state_finite
from rlpheads.engine.runs.resume import ResumePoint, identity
from rlpheads.engine.runs.run_manifest import Position
from rlpheads.engine.runs.run_setup import RunSetup
from rlpheads.engine.training.label_choice import head_baselines
from rlpheads.engine.training.outcome import REMEDIES, TrainingDivergedError
from rlpheads.engine.training.preparation import BatchPreparation
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.order import PADDING, Order
from rlpheads.memorization.heads.combined_loss import TermWeights


@dataclass(frozen=True)
class Splits:
    """The three passes: training images as they are trained on, the same without augmentation, held-out images."""

    trained: Split
    clean: Split
    heldout: Split


def is_due(every: int, epoch: int, num_epochs: int) -> bool:
    """Whether what is done every so many epochs, and after the last one, is done after this epoch."""
    return epoch + 1 == num_epochs or (every > 0 and (epoch + 1) % every == 0)


def num_due(every: int, epochs: range, num_epochs: int) -> int:
    """How many of these epochs `is_due` holds for, in a time that does not grow with them."""
    if not epochs:
        return 0
    in_turn = epochs.stop // every - epochs.start // every if every > 0 else 0
    return in_turn + (epochs.stop == num_epochs and not (every > 0 and num_epochs % every == 0))


class Training:
    """A run at a position: trains from there, is saved there, and is resumed at another. Only its methods change it.

    Attributes:
        run: what it was given.
        learner: what learns.
        splits: what is read and recorded.
        step: one optimizer step, for a prepared batch.
        order: the order of the training samples.
        preparation: what is done to batches before.
        gauges: what is measured meanwhile.
        saver: writes the checkpoints.
    """

    def __init__(
        self,
        run: RunSetup,
        learner: Learner,
        splits: Splits,
        step: TrainStep,
        preparation: BatchPreparation,
        gauges: Gauges,
    ):
        self.run = run
        self.learner = learner
        self.splits = splits
        self.order: Order = splits.trained.loader.order
        self.step = step
        self.preparation = preparation
        self.gauges = gauges
        self.saver = CheckpointSaver(run.folder.checkpoints, run.launch, run.config.checkpoint)
        self._position = Position()
        self._saved_position: Position | None = None
        self._reviewed = 0
        self._term_weights = TermWeights(run.config.regularizer.factor, run.config.heads.joint)
        self._refit: FreshRefit | None = None
        self._last_batch: Batch | None = None

    @property
    def position(self) -> Position:
        """How far the training is."""
        return self._position

    @property
    def is_saved(self) -> bool:
        """Whether the last checkpoint is of this very position, as far as is known of one that is being written."""
        return self._position == self._saved_position and self.saver.last_failure is None

    @property
    def reviewed(self) -> int:
        """Number of the last step, from 1, that was found finite or answered."""
        return self._reviewed

    @property
    def term_weights(self) -> TermWeights:
        """λ of the regulariser, which may be steered, and μ of the joint term."""
        return self._term_weights

    @property
    def refit(self) -> FreshRefit | None:
        """Heads refitted to fresh labels in the last clean pass of this process, at the main rank; None without one."""
        return self._refit

    @property
    def num_updates(self) -> int:
        """Optimizer steps taken."""
        return self._position.epoch * self.order.num_steps + self._step_of_epoch

    @property
    def epoch_has_steps_left(self) -> bool:
        """Whether the position's epoch is not trained to its end."""
        return self._step_of_epoch < self.order.num_steps

    @property
    def reached_max_steps(self) -> bool:
        """Whether `max_steps` allows no further step."""
        return self.run.config.max_steps is not None and self.num_updates >= self.run.config.max_steps

    @property
    def step_phase(self) -> str:
        """What a step is called to those who watch for hangs: the first one of each size of images may compile."""
        early = self.run.config.data.early_sizes
        epoch = self._position.epoch
        return f"training step at {early[epoch]} pixels" if epoch < len(early) else "training step"

    @property
    def images_left(self) -> int:
        """Images from here to the end of the last epoch, or to `max_steps`."""
        config, num_steps = self.run.config, self.order.num_steps
        last_step = config.epochs * num_steps if config.max_steps is None else config.max_steps
        steps = min(last_step, config.epochs * num_steps) - self._position.epoch * num_steps
        return steps * config.batch_size - self._position.consumed

    @property
    def evaluation_images_left(self) -> int:
        """Images of the held-out and clean passes from here to the end of the last epoch, or to `max_steps`."""
        config, sources = self.run.config, self.run.sources
        whole = config.epochs if config.max_steps is None else config.max_steps // self.order.num_steps
        epochs = range(self._position.epoch, min(whole, config.epochs))
        num_heldout, num_networks = sources.heldout.manifest.num_samples, 2 if self.learner.ema is not None else 1
        heldout_passes = num_due(config.eval.every, epochs, config.epochs) * num_networks
        if whole < config.epochs:  # the end at `max_steps`
            heldout_passes += 1
        clean_passes = num_due(config.eval.clean_every, epochs, config.epochs)
        return heldout_passes * num_heldout + clean_passes * sources.train.manifest.num_samples

    @property
    def last_batch(self) -> Batch | None:
        """The last prepared batch, where it is drawn or may be the last of the run; else None."""
        return self._last_batch

    @property
    def baselines_T(self) -> list[float]:  # noqa: N802 - shape suffix
        """What a least-squares head alone reaches at every tap, on features that know nothing of the labels."""
        return head_baselines(self.run.config, self.run.sources.train.manifest, self.learner.dims)

    def train_on(self, delivered: Batch) -> None:
        """Take the next optimizer step, on the next batch of the training loader."""
        num_updates = self.num_updates
        if num_updates + 1 in self._position.left_out:
            self._leave_out(delivered)
        else:
            with self.gauges.own_time.work.measuring():
                batch = self.preparation.for_training(delivered, self._position.epoch, self._step_of_epoch)
            self.gauges.meters.add(num_updates + 1, self.step(batch, num_updates, self._term_weights))
            is_drawn = num_updates < self.run.config.log.images
            self._last_batch = batch if is_drawn or self._may_be_last else None
        self._position = self._position.after(delivered.num_global_rows)

    def count_skipped(self, step: int) -> None:
        """Count a step, number `step` from 1, whose update was not taken, and record its samples as skipped."""
        self._reviewed = step
        self._position = replace(self._position, skipped_in_a_row=(*self._position.skipped_in_a_row, step))
        epoch, step_of_epoch = divmod(step - 1, self.order.num_steps)
        rank = self.run.launch.rank
        index_B = self.order.rank_indices(epoch, step_of_epoch, rank.rank, rank.world_size)
        self.splits.trained.ledger.retract(torch.from_numpy(index_B).to(self.run.launch.device), self._is_first)

    def leave_out(self, steps: tuple[int, ...]) -> None:
        """Take no step on the global batches of these steps, numbered from 1, whatever else the position says."""
        self._position = replace(self._position, left_out=tuple(sorted({*self._position.left_out, *steps})))

    def count_finite(self, step: int) -> None:
        """Count a step, number `step` from 1, whose update was taken."""
        self._reviewed = step
        if self._position.skipped_in_a_row:
            self._position = replace(self._position, skipped_in_a_row=())

    def time_heads(self) -> Overhead | None:
        """Time steps with heads and without on the last batch; the weights are of no use afterwards. Collective.

        None where the run was too short for it, does not want it (`eval.overhead`), or has nothing to compare.
        """
        num_pairs = num_timed_pairs(self.gauges.clock.num_steps)
        if not self.run.config.eval.overhead or self._last_batch is None or not num_pairs:
            return None
        return time_heads(self.step, self._last_batch, self.num_updates, self._term_weights, num_pairs)

    def _leave_out(self, delivered: Batch) -> None:
        """Take no step on a batch, and record its samples as skipped; of repeats the first, at one rank."""
        is_first = self._is_first
        scheduled_B = delivered.index if is_first is None else torch.where(is_first, delivered.index, PADDING)
        for index_B in (scheduled_B, delivered.skipped_index):
            self.splits.trained.ledger.skip(index_B.to(self.run.launch.device, non_blocking=True))

    def begin_next_epoch(self) -> None:
        """Go to the beginning of the next epoch, with an empty ledger."""
        self.splits.trained.ledger.reset()
        self._position = self._position.next_epoch

    def move_to(self, position: Position) -> None:
        """Go to another position, with everything else as it is."""
        self._position = position

    def keep_refit(self, refit: FreshRefit) -> None:
        """Keep what a clean pass found on fresh labels, for the run's last figures."""
        self._refit = refit

    def set_factor(self, factor: float) -> None:
        """Set the regulariser's λ."""
        self._term_weights = replace(self._term_weights, factor=factor)

    def save(self) -> None:
        """Save this moment; where `checkpoint.background` is set, training may go on meanwhile. Collective.

        Whether it is finite is found out on the copy: `saver.last_failure` is a NonfiniteStateError if it is not.
        """
        run = self.run
        state = self.learner.state() | {"ledger": self._merged_ledger()}
        facts: dict[str, Any] = {"position": asdict(self._position), "regularizer_factor": self._term_weights.factor}
        facts |= {"world_size": run.launch.world_size, "spikes": self.gauges.spikes.state()}
        if (window := self.gauges.meters.partial_window()) is not None:
            state["window"] = {"shares": window.shares_WSF}
            facts["window"] = {"names": window.names, "steps": window.steps, "ranks": len(window.shares_WSF)}
        if run.launch.is_main:
            facts["record"] = run.log.digests()
            facts |= identity(run.config, run.sources)  # reads some files, at this rank alone
        self.saver.save(self.num_updates, state, facts)
        self._saved_position = self._position

    def announce(self, event: str, *facts: Any, epoch: int | None = None) -> None:
        """Tell the callbacks of plug-ins of an event, with `facts`; `epoch`: the one that it is of, if not the position's."""
        announce(
            self.run.config,
            event,
            *facts,
            folder=self.run.folder.path,
            is_main=self.run.launch.is_main,
            epoch=self._position.epoch if epoch is None else epoch,
            step=self.num_updates,
            model=self.learner.tapped,
        )

    def check_finite(self) -> None:
        """Look at every weight and at what the optimizers keep, before they are evaluated. Collective.

        Raises:
            TrainingDivergedError: one is not finite.
        """
        try:
            check_state_finite(self.learner.state(), self.num_updates, self.run.launch.control)
        except NonfiniteStateError as error:
            raise self.divergence(error) from error

    def divergence(self, found: NonfiniteStateError) -> TrainingDivergedError:
        """Return what ends the run where a state is not finite, with what the user can do."""
        words = f"{found}; nothing of it was saved. {self.last_checkpoint_words}; {REMEDIES} in a run with another --run.name"
        return TrainingDivergedError(words, found.step)

    @property
    def last_checkpoint_words(self) -> str:
        """What a run that ends now would go on from, once that is written."""
        self.saver.wait()
        whole = checkpoint.list_whole(self.run.folder.checkpoints)
        if not whole:
            return "There is no checkpoint yet: the same command begins again"
        return f"The last checkpoint, {whole[-1].name}, is whole and finite: the same command goes on from it"

    def resume(self, point: ResumePoint) -> None:
        """Take up the state of a checkpoint. Collective."""
        ledger = self.splits.trained.ledger
        state = self.learner.state() | {"ledger": ledger.tensors()}
        if point.window is not None:
            shape = point.window.ranks, len(point.window.steps), len(point.window.names)
            state["window"] = {"shares": torch.zeros(shape)}
        checkpoint.load(point.checkpoint, state, self.run.launch, may_lack={"ledger": ledger.LATER_COLUMNS})
        ledger.forget([name for name in ledger.LATER_COLUMNS if name not in state["ledger"]])
        self.learner.load_optimizers(state)
        if point.window is not None:
            window = PartialWindow(point.window.names, point.window.steps, state["window"]["shares"])
            self.gauges.meters.resume_window(window, self.run.launch.rank.rank)
        if not self.run.launch.is_main:
            ledger.reset()  # the ranks' rows were merged when they were saved
        self._position = self._saved_position = point.position
        self._reviewed = self.num_updates
        self.set_factor(point.factor)
        self.gauges.spikes.load(point.spikes)

    @property
    def _may_be_last(self) -> bool:
        """Whether the step that is being taken closes an epoch or reaches `max_steps`."""
        return self._step_of_epoch + 1 == self.order.num_steps or self.num_updates + 1 == self.run.config.max_steps

    @property
    def _is_first(self) -> Tensor | None:
        return None if self.preparation.repeats is None else self.preparation.repeats.is_first

    @property
    def _step_of_epoch(self) -> int:
        return self.order.step_at(self._position.consumed)

    def _merged_ledger(self) -> dict[str, Tensor]:
        tensors = self.splits.trained.ledger.tensors()
        if self.run.launch.world_size == 1:
            return tensors
        merged = {name: tensor.clone() for name, tensor in tensors.items()}
        for tensor in merged.values():
            torch.distributed.all_reduce(tensor)
        return merged
