"""Heads beside a network that somebody else's loop trains: hooks read its features, the heads learn and fill a ledger.

The loop says which samples come next (`expect`), calls the network as ever, and closes its epochs (`finish_epoch`). The heads
have an optimizer and, over several ranks, a DDP wrapper of their own, and learn inside the network's forward pass; with λ = 0
the network is trained bit for bit as without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rlpheads.engine.config.streams import stream_seed
from rlpheads.engine.integrations.added_loss import add_loss
from rlpheads.engine.integrations.repeated_samples import merge_repeated
from rlpheads.engine.model.pooling import pooling_of
from rlpheads.engine.model.tap_hooks import TapHooks
from rlpheads.engine.model.tapped_model import find_places, logits_of
from rlpheads.engine.model.taps import Place, Pool, Tap
from rlpheads.memorization.heads.combined_loss import TermWeights, combine_losses
from rlpheads.memorization.heads.head_losses import MEASURING, HeadLosses, HeadTerms
from rlpheads.memorization.heads.labels import label_key, random_labels
from rlpheads.memorization.heads.rlp_heads import RLPHeads
from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import LabelSource, LedgerMetadata


@dataclass(frozen=True)
class HeadSettings:
    """Which heads are built, and how they learn.

    Attributes:
        taps: names of the network's modules whose outputs are read.
        num_labels: K, of each random label.
        num_draws: M, labels of each sample that the heads learn.
        num_audit_draws: further labels, learned by audit heads that no regulariser sees; None: one where `factor` is above 0.
        factor: λ of the regulariser; 0: the network is measured and not changed.
        regularizer: its kind.
        seed: of the random labels: `label_table(N, num_labels, num_draws=…, seed=seed, split="train")` gives them again.
        lr: of the heads' AdamW.
        weight_decay: of the heads' AdamW.
        pool: how tokens become a feature vector; None: the class token where the network has one, else the mean.
        channels_last: whether maps are (B, H, W, D); None: as is known of timm's and torchvision's networks.
    """

    taps: Sequence[Tap]
    num_labels: int
    num_draws: int = 1
    num_audit_draws: int | None = None
    factor: float = 0.0
    regularizer: str = "unlikelihood"
    seed: int = 0
    lr: float = 1e-3
    weight_decay: float = 0.0
    pool: Pool | None = None
    channels_last: bool | None = None

    @property
    def draws(self) -> dict[str, int]:
        """Number of draws of the heads' own ("own") and of the audit heads ("audit"), without groups that are empty."""
        audit = int(self.factor > 0) if self.num_audit_draws is None else self.num_audit_draws
        return {"own": self.num_draws} | ({"audit": audit} if audit else {})

    def terms(self, num_taps: int) -> HeadTerms:
        """Return what the heads compute while they learn."""
        return HeadTerms(self.regularizer, tuple(range(num_taps))) if self.factor > 0 else MEASURING


class _Rows(NamedTuple):
    """The samples of the forward pass that comes next."""

    index_B: Tensor
    targets_B: Tensor
    share: float


class Measurement:
    """Heads, their optimizer and the ledger of an epoch, hooked to a network.

    Args:
        backbone: the network, whose forward pass gives logits.
        settings: of the heads.
        num_samples: N, samples of the training set.
        folder: where ledgers are written, as `ledger/epoch=0000/running.parquet`.
        fingerprint: what tells this training set from others in the ledgers' metadata.

    Raises:
        ValueError: a tap is no place of the network, or a setting is out of range.
    """

    def __init__(
        self, backbone: nn.Module, settings: HeadSettings, num_samples: int, folder: str | Path, fingerprint: str = ""
    ):
        self.settings = settings
        self.places = _module_places(find_places(backbone, settings.taps))
        self.folder = Path(folder)
        self.fingerprint = fingerprint
        self.device = next(backbone.parameters()).device
        num_draws = sum(settings.draws.values())
        self.ledger = Ledger(num_samples, len(self.places), num_draws, self.device)
        self._terms = settings.terms(len(self.places))
        self._weights = TermWeights(settings.factor)
        self._heldout_hits_TM = torch.zeros(len(self.places), num_draws, dtype=torch.int64, device=self.device)
        self._num_heldout = 0
        self._heads: dict[str, nn.Module] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._state: dict[str, Any] | None = None
        self._rows: _Rows | None = None
        self._hooks = TapHooks(backbone, self.places, pooling_of(backbone, settings.pool, settings.channels_last))
        self._handles = [
            backbone.register_forward_pre_hook(self._before_forward),
            backbone.register_forward_hook(self._after_forward),
        ]

    def expect(self, index_B: Tensor, targets_B: Tensor, share: float = 1.0) -> None:
        """Say which samples the next forward pass is of; another pass before the next call is not read.

        In training mode the heads learn and the ledger is filled; in evaluation mode held-out labels are predicted.

        Args:
            index_B: canonical indices, integers.
            targets_B: their classes, integers.
            share: what the loop will multiply its loss by, such as 1 over the micro-batches of a step.

        Raises:
            ValueError: the targets are no classes, or there are not as many as indices.
        """
        if targets_B.is_floating_point() or targets_B.shape != index_B.shape or index_B.ndim != 1:
            raise ValueError(
                f"targets of shape {tuple(targets_B.shape)} and dtype {targets_B.dtype} for indices of shape "
                f"{tuple(index_B.shape)}: one class, as an integer, goes with each index (mixed and soft targets have none)"
            )
        self._update_heads()
        self._rows = _Rows(index_B.to(self.device), targets_B.to(self.device), share)

    def finish_epoch(self, epoch: int, step: int) -> dict[str, float]:
        """Close an epoch: write its ledger at the main rank, and begin another. Collective.

        Returns:
            `rla/TAP`: random-label accuracy on the training samples as they were trained on, a mean over draws;
            `audit_rla/TAP`: of audit heads.
        """
        self._rows = None
        self._update_heads()
        merge_repeated(self.ledger)
        found = self._figures()
        if not dist.is_initialized() or dist.get_rank() == 0:
            path = self.folder / "ledger" / f"epoch={epoch:04d}" / "running.parquet"
            self.ledger.write_parquet(path, self._metadata(epoch, step))
        self.ledger.reset()
        return found

    def finish_heldout(self) -> dict[str, float]:
        """Close a pass over held-out samples. Collective.

        Returns:
            `heldout_rla/TAP`: random-label accuracy there, which is chance, 1/K, unless something leaks; nothing where no
            samples came.
        """
        totals = torch.cat([self._heldout_hits_TM.flatten(), self._heldout_hits_TM.new_tensor([self._num_heldout])])
        if dist.is_initialized():
            dist.all_reduce(totals)
        hits_T, num_samples = totals[:-1].view_as(self._heldout_hits_TM).double().mean(1), int(totals[-1])
        self._heldout_hits_TM.zero_()
        self._num_heldout = 0
        if not num_samples:
            return {}
        return {
            f"heldout_rla/{place}": float(hits) / num_samples for place, hits in zip(self.places, hits_T, strict=True)
        }

    def release(self) -> None:
        """Take the hooks off the network."""
        self._hooks.release()
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return heads and optimizer, to go on from an epoch's end; nothing before the first forward pass."""
        if self._optimizer is None:
            return {}
        self._update_heads()
        heads = {name: _bare(module).state_dict() for name, module in self._heads.items()}
        return {"heads": heads, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned, once the widths of the taps are known."""
        self._state = state or None

    def _before_forward(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG002
        if self._rows is not None:
            self._hooks.start()

    def _after_forward(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG002
        if self._rows is None:
            return None
        rows, self._rows = self._rows, None
        features = self._hooks.features()
        taps = [features[place] for place in self.places]
        if module.training and torch.is_grad_enabled():
            return self._learn(rows, taps, output)
        self._predict_heldout(rows, taps)
        return None

    def _learn(self, rows: _Rows, taps: list[Tensor], output: Any) -> Any:
        """Back-propagate the heads' loss, record the rows, and return the output with the regulariser's gradient."""
        if not self._heads:
            self._build([tap.shape[-1] for tap in taps])
        losses = self._head_losses(rows.index_B, "train", taps)
        combined = {
            name: combine_losses(each, weights=self._weights if name == "own" else TermWeights())
            for name, each in losses.items()
        }
        sum_of_heads = torch.stack([each.heads for each in combined.values()]).sum()
        sum_of_heads.backward(retain_graph=self.settings.factor > 0)
        self._record(rows, logits_of(output).detach(), list(losses.values()))
        if self.settings.factor == 0:
            return None
        return add_loss(output, combined["own"].backbone, rows.share)

    def _head_losses(self, index_B: Tensor, split: str, taps: list[Tensor]) -> dict[str, HeadLosses]:
        labels_MB = torch.stack(
            [
                random_labels(index_B, self.settings.num_labels, key=label_key(self.settings.seed, split, draw))
                for draw in range(sum(self.settings.draws.values()))
            ]
        )
        of_groups = labels_MB.split(list(self.settings.draws.values()))
        trains = split == "train"
        return {
            name: (heads if trains else _bare(heads))(
                taps, labels, self._terms if trains and name == "own" else MEASURING
            )
            for (name, heads), labels in zip(self._heads.items(), of_groups, strict=True)
        }

    @torch.no_grad()
    def _predict_heldout(self, rows: _Rows, taps: list[Tensor]) -> None:
        if self._heads:  # some loops evaluate before they train
            losses = self._head_losses(rows.index_B, "val", taps)
            self._heldout_hits_TM += torch.cat([each.hit_TMB for each in losses.values()], dim=1).sum(-1)
            self._num_heldout += len(rows.index_B)

    def _record(self, rows: _Rows, logits_BC: Tensor, losses: list[HeadLosses]) -> None:
        measured_TMB = [
            torch.cat([getattr(each, name).detach() for each in losses], dim=1)
            for name in ("hit_TMB", "bits_TMB", "margin_TMB")
        ]
        logits_BC = logits_BC.float()
        class_loss_B = F.cross_entropy(logits_BC, rows.targets_B, reduction="none")
        confidence_B, predicted_B = logits_BC.softmax(-1).max(-1)
        self.ledger.record(
            *(rows.index_B, rows.targets_B, class_loss_B, predicted_B == rows.targets_B),
            *measured_TMB,
            predicted_B=predicted_B,
            confidence_B=confidence_B,
        )

    def _build(self, dims: list[int]) -> None:
        settings = self.settings
        for name, num_draws in settings.draws.items():
            seed = stream_seed(settings.seed, "heads" if name == "own" else name)
            heads = RLPHeads(dims, settings.num_labels, num_draws, seed=seed, device=self.device)
            if self._state is not None:
                heads.load_state_dict(self._state["heads"][name])
            several = dist.is_initialized() and dist.get_world_size() > 1
            self._heads[name] = DistributedDataParallel(heads, gradient_as_bucket_view=True) if several else heads
        parameters = [parameter for heads in self._heads.values() for parameter in heads.parameters()]
        self._optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        if self._state is not None:
            self._optimizer.load_state_dict(self._state["optimizer"])
            self._state = None

    def _update_heads(self) -> None:
        """Take the heads' step, once the loop has taken the gradient of the regulariser, which needs their weights."""
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def _figures(self) -> dict[str, float]:
        accuracy_TM, num_own = self.ledger.label_accuracy_TM, self.settings.num_draws
        found = {f"rla/{place}": float(accuracy_TM[t, :num_own].mean()) for t, place in enumerate(self.places)}
        if "audit" in self.settings.draws:
            audit_T = accuracy_TM[:, num_own:].mean(1)
            found |= {f"audit_rla/{place}": float(audit) for place, audit in zip(self.places, audit_T, strict=True)}
        return found

    def _metadata(self, epoch: int, step: int) -> LedgerMetadata:
        draws = self.settings.draws
        return LedgerMetadata(
            fingerprint=self.fingerprint,
            seed=self.settings.seed,
            num_labels=self.settings.num_labels,
            taps=tuple(place.name for place in self.places),
            num_draws=sum(draws.values()),
            epoch=epoch,
            phase="running",
            split="train",
            step=step,
            num_audit_draws=draws.get("audit", 0),
            labels=LabelSource(self.settings.seed, "iid"),
        )


def _module_places(places: tuple[Place, ...]) -> tuple[Place, ...]:
    """Return the places; refuse numbered blocks, which no hook can read.

    Raises:
        ValueError: there is one, or there is no place.
    """
    if not places:
        raise ValueError("no taps: name at least one module of the network")
    if numbered := [place.name for place in places if place.module is None and not place.is_inside]:
        raise ValueError(
            f"tap {numbered[0]}: a block's number; name its module instead, such as blocks.{numbered[0]}, since the loop calls "
            "the network in its own way"
        )
    return places


def _bare(heads: nn.Module) -> nn.Module:
    return heads.module if isinstance(heads, DistributedDataParallel) else heads
