"""Data-parallel training on paper: step time, memory and traffic of a network from what is counted of it.

Nothing is timed here. A step is as long as its arithmetic at a given rate, plus the update at a given memory bandwidth,
plus what of the gradients' exchange does not fit beside the backward pass. ``docs/performance.md`` has what the model
said and what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from ...core import roles
from ...core.roles import total
from . import networks as models
from .memory import saved_bytes
from .parity import Net, objective
from .settings import Settings
from .steps import images, operations

BUCKET = 25 * 2**20  # bytes that DDP sends at once
LATENCY = 10e-6  # seconds of one hop of an all-reduce
NUMBER = 4  # bytes: weights, gradients and moments are kept in fp32, as AMP does
MOVED = 7  # numbers an update moves for each trained one: weight, gradient and two moments; all but the gradient back


@dataclass(frozen=True)
class Counted:
    """What a network costs: parameters, floating-point operations and saved bytes of one image."""

    name: str
    params: int
    trained: int
    forward: int
    step: int
    saved: int

    @property
    def state(self) -> int:
        """Bytes of weights, gradients and AdamW's two moments."""
        return NUMBER * (self.params + 3 * self.trained)

    def traffic(self, gpus: int) -> float:
        """Bytes that each GPU sends, and receives, in the all-reduce of a step: 2 (N - 1) / N of the gradients."""
        return 2 * (gpus - 1) / gpus * NUMBER * self.trained


@dataclass(frozen=True)
class Cluster:
    """GPUs and what connects them, as achieved and not as advertised.

    Attributes:
        flops: floating-point operations a second of a GPU in a training step.
        memory: bytes a second of its memory.
        network: bytes a second that a GPU sends while it receives as many.
    """

    flops: float
    memory: float
    network: float

    def exchange(self, net: Counted, gpus: int) -> float:
        """Seconds of a step's all-reduce: its bytes, and for each bucket the hops of a tree there and back."""
        if gpus == 1:
            return 0.0
        hops = 2 * math.ceil(math.log2(gpus)) * LATENCY * buckets(net)
        return net.traffic(gpus) / self.network + hops

    def step(self, net: Counted, gpus: int, batch: int) -> float:
        """Seconds. The exchange runs beside the backward pass, but for its last bucket."""
        arithmetic = net.step * batch / self.flops
        backward = arithmetic * (net.step - net.forward) / net.step
        exchange = self.exchange(net, gpus)
        waited = max(exchange - backward, exchange / buckets(net))
        return arithmetic + waited + MOVED * NUMBER * net.trained / self.memory


def buckets(net: Counted) -> int:
    return math.ceil(NUMBER * net.trained / BUCKET)


def count(s: Settings, name: str, model: nn.Module) -> Counted:
    """Counts a network in training; its arithmetic on the meta device, what it saves in a real forward pass."""
    flops = [operations(s, {name: model}, 1, train)[name] for train in (False, True)]
    model.train()  # mmpretrain's gives nothing back
    net, image = Net(model), images(s, 1)
    net(image)  # fills the caches of constants
    counts, saved = total(roles.count(model).values()), saved_bytes(lambda: objective(net(image)))
    return Counted(name, counts.params, counts.trainable, *flops, saved)


def ways(s: Settings, name: str) -> list[Counted]:
    """A network of the benchmark's at twice its depth, in the ways it can be trained; and at its own depth."""
    swin = (models.our_swin, models.mmdet_swin)
    ours, stock = swin if name.startswith('Swin') else (models.our_deit, models.mmpretrain_vit)
    scaled = ours(s, name)
    maps = list(scaled.layer_maps().values())
    increments = count(s, 'ScaleNet, increments', scaled)
    roles.TrainPolicy('all').apply(scaled)
    return [
        increments,
        count(s, 'ScaleNet, all trained', scaled),
        count(s, 'unshared layers, all trained', stock(s, name, [len(m) for m in maps])),
        count(s, 'source, all trained', stock(s, name, [m.depth for m in maps])),
    ]
