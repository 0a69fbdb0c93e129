"""Wide residual networks (WRN) for 32 x 32 images: Zagoruyko and Komodakis, "Wide Residual Networks" (BMVC 2016).

timm has none for images of this size. `wrn_16_4` and `wrn_28_10` are registered with timm and have the interface of its models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead
from timm.models import checkpoint_seq, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn


class WideBlock(nn.Module):
    """Pre-activation residual block, x + conv(drop(relu(bn(conv(relu(bn(x))))))), with a 1 x 1 shortcut between shapes."""

    def __init__(self, num_in: int, num_out: int, stride: int, drop_rate: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(num_in)
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.drop = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        changes = stride != 1 or num_in != num_out
        self.shortcut = nn.Conv2d(num_in, num_out, 1, stride, bias=False) if changes else None

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, num_in, H, W) to (B, num_out, H / stride, W / stride)."""
        active = F.relu(self.bn1(maps))
        residual = self.conv2(self.drop(F.relu(self.bn2(self.conv1(active)))))
        return residual + (maps if self.shortcut is None else self.shortcut(active))  # as the paper's own code has it


class WideResNet(nn.Module):
    """A stem and three stages of 16k, 32k and 64k channels; the last two halve the side.

    Args:
        depth: 6n + 4 layers, n blocks a stage.
        width: k.
        num_classes: outputs; 0: none, the features pass.
        in_chans: channels of the images.
        drop_rate: dropout inside blocks, between the convolutions.
        global_pool: how the last maps are pooled.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        super().__init__()
        num_blocks, rest = divmod(depth - 4, 6)
        if rest or num_blocks < 1:
            raise ValueError(f"a wide residual network has 6n + 4 layers, got depth={depth}")
        widths = [16 * width, 32 * width, 64 * width]
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = widths[-1]
        self.grad_checkpointing = False
        self.conv = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        stages = zip([16, *widths], widths, (1, 2, 2), strict=False)
        self.stages = nn.Sequential(*(_stage(*sizes, num_blocks, drop_rate) for sizes in stages))
        self.bn = nn.BatchNorm2d(widths[-1])
        self.head = ClassifierHead(widths[-1], num_classes, pool_type=global_pool)
        self.feature_info = [{"num_chs": 16, "reduction": 1, "module": "conv"}]
        for i, num_chs in enumerate(widths):
            self.feature_info.append({"num_chs": num_chs, "reduction": 2**i, "module": f"stages.{i}"})
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Classify (B, in_chans, H, W) images."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last feature maps, after batch norm and ReLU: (B, 64k, H, W)."""
        maps = self.conv(images)
        for stage in self.stages:
            maps = self._run(stage, maps)
        return F.relu(self.bn(maps))

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes), or the pooled features if `pre_logits`."""
        return self.head(maps, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last feature maps and those after the stem (0) and the stages (1 to 3), as timm's models do.

        Args:
            x: images (B, in_chans, H, W).
            indices: which maps; a number n: the last n; None: all.
            norm: apply the final batch norm and ReLU to the last stage's map.
            stop_early: do not compute what comes after the last of the maps (the last feature maps are then that one).
            output_fmt: NCHW.
            intermediates_only: return the list alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, got {output_fmt}")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        maps = self.conv(x)
        reached = [maps]
        for stage in self.stages[: last if stop_early else None]:
            maps = self._run(stage, maps)
            reached.append(maps)
        final = F.relu(self.bn(maps)) if len(reached) == len(self.feature_info) else maps
        if norm and len(reached) == len(self.feature_info):
            reached[-1] = final
        chosen = [reached[i] for i in range(len(reached)) if i in taken]
        return chosen if intermediates_only else (final, chosen)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Activation checkpointing: recompute activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that group parameters into layers, for layer-wise learning rate decay."""
        blocks = r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None), (r"^bn\.", (99999,))]
        return {"stem": r"^conv\.", "blocks": blocks}

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a newly initialised one."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def _run(self, stage: nn.Module, maps: Tensor) -> Tensor:
        return checkpoint_seq(stage, maps) if self.grad_checkpointing else stage(maps)


@register_model
def wrn_16_4(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-16-4: 2.7 million parameters."""
    return _build(16, 4, pretrained, **kwargs)


@register_model
def wrn_28_10(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-28-10: 36.5 million parameters."""
    return _build(28, 10, pretrained, **kwargs)


def _build(depth: int, width: int, pretrained: bool, **kwargs: Any) -> WideResNet:
    if pretrained:
        raise RuntimeError(f"no pretrained weights are published for wrn_{depth}_{width}")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # timm passes them to every model
        kwargs.pop(name, None)
    return WideResNet(depth, width, **kwargs)


def _stage(num_in: int, num_out: int, stride: int, num_blocks: int, drop_rate: float) -> nn.Sequential:
    sizes: Sequence[tuple[int, int, int]] = [(num_in, num_out, stride), *[(num_out, num_out, 1)] * (num_blocks - 1)]
    return nn.Sequential(*(WideBlock(*size, drop_rate) for size in sizes))


def _initialise(module: nn.Module) -> None:
    """Initialise weights: He et al. (2015) with fan-out for convolutions, fan-in for the classifier."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
        with torch.no_grad():
            module.weight.normal_(std=module.in_features**-0.5)
