"""The gauges of a run: figures of the steps, throughput, data wait, and MFU."""

from __future__ import annotations

from dataclasses import dataclass

from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.gauges.clock import Clock, DeviceWait
from rlpheads.engine.gauges.meters import Meters
from rlpheads.engine.model.flops import Utilisation


@dataclass(frozen=True)
class Gauges:
    """What is measured while training.

    Attributes:
        meters: figures of the steps, averaged over windows.
        clock: training time, images and waiting for data.
        utilisation: arithmetic of an image, and the device's peak.
    """

    meters: Meters
    clock: Clock
    utilisation: Utilisation

    @property
    def rates(self) -> dict[str, float]:
        """How fast the training goes: images per second, share of waiting for data, and MFU where it is known."""
        rate = self.clock.images_per_second
        return {"images_per_second": rate, "data_wait": self.clock.data_wait, **self.utilisation.figures(rate)}


def build_gauges(launch: Launch, utilisation: Utilisation) -> Gauges:
    """Build the gauges of a run on this rank's device; waiting is timed on the device where there is one."""
    device_wait = None if launch.device.type == "cpu" else DeviceWait(launch.device)
    return Gauges(Meters(launch.device, launch.world_size), Clock(device_wait=device_wait), utilisation)
