"""The rank task: a 4 x 4 grid of real handwritten digits; for every cell, how many cells hold a smaller digit.

Comparing all cells with all others takes layers, and scenes are drawn without end, so nothing but the 1,400 digit
images can be memorised: depth pays, and a small trained source is far from saturated.
Imported by the configs of the study.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModule
from mmengine.registry import DATASETS, FUNCTIONS, METRICS, MODELS
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.digits import load_raw, split_indices

GRID, CELL = 4, 8  # cells a side, pixels a cell
CELLS = GRID * GRID
CONTRAST, NOISE = (0.8, 1.2), 0.15  # chosen on pilot seeds: docs/evidence_plan.md
DEGREES, SCALE, SHEAR, SHIFT = 15.0, 0.15, 0.15, 1.0  # of the digits: half-ranges; the shift in pixels
MEAN, STD = 0.26, 0.38  # of the scenes' pixels
LAYOUTS = 9  # stream of a seed that fixed layouts are drawn from


def warp(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each digit turned, resized, sheared and moved a little, drawn anew; (N, 8, 8) -> (N, 8, 8), bilinear."""
    turn, shear = rng.uniform(-1, 1, (2, len(images))) * [[np.deg2rad(DEGREES)], [SHEAR]]
    size = np.exp(rng.uniform(-SCALE, SCALE, (2, len(images))))
    c, s = np.cos(turn), np.sin(turn)
    theta = np.zeros((len(images), 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 0, 1] = c * size[0], (shear * c - s) * size[0]
    theta[:, 1, 0], theta[:, 1, 1] = s * size[1], (shear * s + c) * size[1]
    theta[:, :, 2] = rng.uniform(-SHIFT, SHIFT, (len(images), 2)) * 2 / CELL
    pixels = torch.from_numpy(np.ascontiguousarray(images, np.float32))[:, None]
    grid = F.affine_grid(torch.from_numpy(theta), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)[:, 0].numpy()


def blend(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The chosen digits (N,), each between its image and another of its class: more digits than were drawn by hand."""
    order = np.argsort(labels, kind='stable')
    first, number = np.searchsorted(labels[order], labels[chosen]), np.bincount(labels)[labels[chosen]]
    others = order[first + rng.integers(number)]
    share = rng.uniform(0, 1, (len(chosen), 1, 1)).astype(np.float32)
    return share * images[chosen] + (1 - share) * images[others]


def draw_scenes(
    images: np.ndarray, labels: np.ndarray, chosen: np.ndarray, rng: np.random.Generator, blended: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draws scenes of given digits, each warped a little, of random contrast, with noise.

    Args:
        images: (N, 8, 8) digits in 0..1.
        labels: (N,) their classes.
        chosen: (B, 16) which digit image each cell of each of B scenes holds, row by row.
        blended: whether a digit is mixed with another of its class.

    Returns:
        pixels (B, 1, 32, 32) float32, normalised; ranks (B, 16) int64 in 0..15, row by row: of each cell the number of
        cells with a smaller digit.
    """
    number = len(chosen)
    flat = chosen.ravel()
    cells = warp(blend(images, labels, flat, rng) if blended else images[flat], rng).reshape(number, CELLS, CELL, CELL)
    cells = cells * rng.uniform(*CONTRAST, (number, CELLS, 1, 1))
    scenes = cells.reshape(number, GRID, GRID, CELL, CELL).swapaxes(2, 3)
    scenes = scenes.reshape(number, 1, GRID * CELL, GRID * CELL).astype(np.float32)
    scenes += rng.normal(0, NOISE, scenes.shape).astype(np.float32)
    digits = labels[chosen]
    ranks = (digits[:, None, :] < digits[:, :, None]).sum(-1)
    return (scenes - MEAN) / STD, ranks


@DATASETS.register_module()
class RankBatches(Dataset):
    """Whole batches of scenes; batch ``i`` depends on (seed, i) alone, so every method sees the same data.

    Args:
        digits: ``'train'`` (1,400 digit images) or ``'val'`` (the other 397).
        batches: length of the data set.
        batch: scenes a batch.
        seed: a whole number or several. Fixed layouts depend on the first alone.
        scenes: 0: scenes are drawn without end. Else the digits of so many scenes are fixed and come in another order
            in every epoch; how they are warped, contrast and noise are drawn anew.
        blended: whether each digit is drawn between two images of its class, for training.
    """

    metainfo: dict = {}

    def __init__(
        self, digits: str, batches: int, batch: int, seed: int | tuple[int, ...], scenes: int = 0, blended: bool = False
    ):
        images, labels = load_raw()
        mine = split_indices(labels)[digits]
        self.images, self.labels = images[mine], labels[mine]
        self.batches, self.batch, self.scenes, self.blended = batches, batch, scenes, blended
        self.seed = (seed,) if isinstance(seed, int) else tuple(seed)
        layouts = np.random.default_rng((self.seed[0], LAYOUTS))
        self.layouts = layouts.integers(len(self.images), size=(scenes, CELLS))

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((*self.seed, int(index)))
        if self.scenes:
            chosen = self.layouts[self._order(index)]
        else:
            chosen = rng.integers(len(self.images), size=(self.batch, CELLS))
        pixels, ranks = draw_scenes(self.images, self.labels, chosen, rng, self.blended)
        return dict(inputs=torch.from_numpy(pixels), data_samples=torch.from_numpy(ranks))

    def _order(self, index: int) -> np.ndarray:
        """The fixed scenes of a batch: each once an epoch, epochs one after the other."""
        at = index * self.batch + np.arange(self.batch)
        epochs = set(at // self.scenes)
        orders = {e: np.random.default_rng((*self.seed, LAYOUTS, e)).permutation(self.scenes) for e in epochs}
        return np.array([orders[i // self.scenes][i % self.scenes] for i in at])


@FUNCTIONS.register_module()
def the_batch(samples: list[dict]) -> dict:
    """Collates one sample that is a batch already."""
    (batch,) = samples
    return batch


@MODELS.register_module()
class RankHead(BaseModule):
    """A linear classifier of every cell: feature maps (B, C, 4, 4) -> logits (B, 16, 16)."""

    def __init__(self, in_channels: int, init_cfg=None):
        super().__init__(init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02))
        self.fc = nn.Linear(in_channels, CELLS)

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        return self.fc(feats[-1].flatten(2).transpose(1, 2))

    def loss(self, feats: tuple[Tensor, ...], data_samples: Tensor, **_) -> dict[str, Tensor]:
        logits = self(feats)
        return dict(loss=F.cross_entropy(logits.flatten(0, 1), data_samples.flatten().to(logits.device)))

    def predict(self, feats: tuple[Tensor, ...], data_samples: Tensor, **_) -> list[dict]:
        logits = self(feats).flatten(0, 1)
        truth = data_samples.flatten().to(logits.device)
        return [
            dict(
                right=int((logits.argmax(1) == truth).sum()),
                loss=float(F.cross_entropy(logits, truth, reduction='sum')),
                cells=len(truth),
            )
        ]


@METRICS.register_module()
class RankMetric(BaseMetric):
    """Share of the cells whose rank is right (``top1``, percent) and mean cross-entropy (``loss``, nats)."""

    default_prefix = 'rank'

    def process(self, data_batch, data_samples: list[dict]) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        right, loss, cells = (sum(r[k] for r in results) for k in ('right', 'loss', 'cells'))
        return dict(top1=100 * right / cells, loss=loss / cells)
