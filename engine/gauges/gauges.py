"""The gauges of a run: figures of the steps, throughput, data wait, and MFU."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlpheads.engine.config.learning import StabilityConfig
from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.gauges.clock import Clock, DeviceWait, EvaluationClock, Stopwatch
from rlpheads.engine.gauges.meters import Meters
from rlpheads.engine.gauges.own_time import HostTimer, OwnTime
from rlpheads.engine.gauges.replicas import ReplicaComparison
from rlpheads.engine.gauges.spikes import SpikeDetector
from rlpheads.engine.model.flops import Utilisation


@dataclass(frozen=True)
class Gauges:
    """What is measured while training.

    Attributes:
        meters: figures of the steps, in windows.
        spikes: which steps' figures stand out.
        replicas: whether the ranks' weights are the same.
        clock: training time, images and waiting for data.
        own_time: how long this rank takes before the ranks of a step meet.
        evaluation_clock: evaluated images and their time.
        utilisation: arithmetic of an image, and the device's peak.
        stopwatch: time of whole epochs.
    """

    meters: Meters
    spikes: SpikeDetector
    replicas: ReplicaComparison
    clock: Clock
    own_time: OwnTime
    evaluation_clock: EvaluationClock
    utilisation: Utilisation
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def rates(self) -> dict[str, float]:
        """How fast the training goes: images per second, share of waiting for data, and MFU where it is known.

        Nothing before there is a rate, in the first steps after a start.
        """
        rate = self.clock.images_per_second
        if rate == 0:
            return {}
        return {"images_per_second": rate, "data_wait": self.clock.data_wait, **self.utilisation.figures(rate)}

    def eta_seconds(self, images_left: int, evaluation_images_left: int) -> float | None:
        """Seconds left, for training and for evaluations; None before there is a rate."""
        training = self.clock.eta_seconds(images_left)
        if training is None:
            return None
        return training + self.evaluation_clock.eta_seconds(evaluation_images_left, self.clock.images_per_second)


def build_gauges(launch: Launch, utilisation: Utilisation, stability: StabilityConfig) -> Gauges:
    """Build the gauges of a run on this rank's device; waiting is timed on the device where there is one."""
    is_host = launch.device.type == "cpu"
    clock = Clock(device_wait=None if is_host else DeviceWait(launch.device))
    work = HostTimer() if is_host else DeviceWait(launch.device)
    return Gauges(
        Meters(launch.device, launch.world_size, launch.rank.rank),
        SpikeDetector(stability.spike_window, stability.spike_z),
        ReplicaComparison(launch.world_size),
        clock,
        OwnTime(work, lambda: clock.waited_seconds),
        EvaluationClock(),
        utilisation,
    )
