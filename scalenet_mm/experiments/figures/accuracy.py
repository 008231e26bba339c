"""Top-1 and loss of a classifier on the images of a figure, as it is and changed, by the config's own evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmpretrain.models import BaseClassifier, ImageClassifier
from torch import Tensor, nn

from .batches import Batches, number, prepared

TOP1 = 'top1'  # the end of the metric's name in mmpretrain and in ours
Change = Callable[[], AbstractContextManager]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    cfg: Config,
    batches: Batches,
    split: str,
    changes: Sequence[Change] = (nullcontext,),
    shown: Callable[[Batches], Iterable[dict]] = iter,
) -> list[dict[str, float]]:
    """``top1`` in percent by the config's own evaluator, mean ``loss`` of its head in nats, both in eval mode.

    Args:
        changes: inside each of them the model is what is measured; images are read once for all.
        shown: passes the batches on, and tells how far it is.

    Returns:
        One a change, with the number of ``images``.

    Raises:
        ValueError: if the model is no classifier, the config has no evaluator for the split, or no top-1 is among its
            metrics.
    """
    if not isinstance(model, BaseClassifier):
        raise ValueError(
            f'Top-1 is of classifiers (of mmpretrain), and the model of this config is a {type(model).__name__}; '
            'features and cka take it.'
        )
    kind = cfg.get(f'{split}_evaluator')
    if not kind:
        raise ValueError(f'The config has no {split}_evaluator, which says how top-1 is counted.')
    with DefaultScope.overwrite_default_scope(batches.scope):
        evaluators = [Evaluator(kind) for _ in changes]
    for evaluator in evaluators:
        evaluator.dataset_meta = getattr(batches.loader.dataset, 'metainfo', {})
    model.eval()
    summed, images = [0.0] * len(changes), 0
    for batch in shown(batches):
        data, n = prepared(model, batch), number(batch)
        images += n
        for i, (change, evaluator) in enumerate(zip(changes, evaluators)):
            with change():
                losses, predictions = _told(model, **data)
            summed[i] += float(model.parse_losses(losses)[0]) * n
            evaluator.process(data_samples=predictions, data_batch=batch)
    return [
        dict(top1=_top1(evaluator.evaluate(images), split), loss=total / images, images=images)
        for evaluator, total in zip(evaluators, summed)
    ]


def _told(model: BaseClassifier, inputs: Tensor, data_samples: Any) -> tuple[dict, Any]:
    """Losses and predictions; where the head gives both, from one pass, and without those of a distillation."""
    if not isinstance(model, ImageClassifier):
        return model.loss(inputs, data_samples), model.predict(inputs, data_samples)
    feats = model.extract_feat(inputs)
    return model.head.loss(feats, data_samples), model.head.predict(feats, data_samples)


def _top1(metrics: dict[str, float], split: str) -> float:
    top1 = next((float(v) for k, v in metrics.items() if k.endswith(TOP1)), None)
    if top1 is None:
        raise ValueError(
            f'None of the metrics {sorted(metrics)} of {split}_evaluator ends with {TOP1!r}; this figure is of '
            'classifiers.'
        )
    return top1
