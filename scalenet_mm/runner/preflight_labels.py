"""What the labels of a run would teach: counted as the library counts them, judged over all data sets of a loader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from mmengine.dataset import BaseDataset

SHOWN = 5  # names that a message prints


class Note(str):
    """What is said of the data before a run and does not stop it: it may be meant so."""


@dataclass
class Labels:
    """What one data set teaches.

    Attributes:
        told: where the labels are, for messages.
        unit: what is counted.
        counts: instances, images or pixels by class index.
        ignored: pixels or instances that no loss counts.
        alone: whether one class by itself can be learnt, as objects before a background are.
        values: of label maps: the numbers in the files.
        reduced: of label maps: whether 0 in the files is ignored and the classes start at 1.
    """

    told: str
    unit: str
    counts: Counter = field(default_factory=Counter)
    ignored: int = 0
    alone: bool = False
    values: set[int] = field(default_factory=set)
    reduced: bool = False


def count(dataset: BaseDataset, told: str) -> Labels | None:
    """Counts boxes (mmdet) or images (mmpretrain) of a loaded data set; None where samples name neither."""
    samples = dataset.data_list
    if 'instances' in samples[0]:
        instances = [i for s in samples for i in s['instances'] if 'bbox_label' in i]
        kept = [i for i in instances if not i.get('ignore_flag')]
        return Labels(told, 'boxes', Counter(i['bbox_label'] for i in kept), len(instances) - len(kept), alone=True)
    if 'gt_label' in samples[0]:
        several = any(np.ndim(s['gt_label']) for s in samples)  # each class of a multi-label task is a task
        return Labels(told, 'images', Counter(int(k) for s in samples for k in np.ravel(s['gt_label'])), alone=several)
    return None


def outside(labels: Labels, number: int) -> list[int]:
    """The labels of no class."""
    return sorted(k for k in labels.counts if not 0 <= k < number)


def counted_from_0(found: Sequence[Labels], number: int) -> bool:
    """Whether label maps whose 0 is ignored hold as many numbers from 0 on as there are classes."""
    values = set().union(*(f.values for f in found))
    return all(f.reduced for f in found) and number > 2 and values - {255} == set(range(number))


def taught(found: Sequence[Labels], classes: Sequence[str]) -> Iterator[str]:
    """What the data sets of a training, together, would not teach.

    Args:
        found: of each data set.
        classes: their names.
    """
    counts = sum((f.counts for f in found), Counter())
    ignored, told = sum(f.ignored for f in found), '; '.join(f.told for f in found)
    missing = [c for i, c in enumerate(classes) if not counts[i]]
    values = set().union(*(f.values for f in found))
    every = ignored + sum(counts.values())
    besides = f' {ignored:,} of {every:,} {found[0].unit} ({ignored / every:.0%}) are ignored.' if ignored else ''
    if not counts:
        yield f'nothing would be learnt from {told}: no label is left.{besides}'
    elif len(counts) == 1 and not any(f.alone for f in found):
        (only,) = counts
        name = classes[only] if 0 <= only < len(classes) else only
        yield (
            f'nothing would be learnt from {told}: its only class is {name!r} (label {only}), so there is nothing to '
            f'tell apart.{besides}{_files(values, found)}'
        )
    elif counted_from_0(found, len(classes)):
        yield (
            f'{told} hold the numbers 0 to {len(classes) - 1}, which are {len(classes)} classes counted from 0; with '
            f'reduce_zero_label=True, 0 is ignored, every class is one lower and {classes[-1]!r} never occurs. Set '
            'reduce_zero_label=False in the data sets and in LoadAnnotations.'
        )
    elif missing:
        yield Note(f'{len(missing)} of {len(classes)} classes do not occur in {told}: {some(missing)}.{besides}')


def _files(values: set[int], found: Sequence[Labels]) -> str:
    """What stands in label maps, and the two usual reasons why it is not what was meant."""
    if not values:
        return ''
    reduced = any(f.reduced for f in found)
    hint = ' (0 among them is ignored, because of reduce_zero_label=True)' if reduced and 0 in values else ''
    return f' The files hold the numbers {some(sorted(values))}{hint}; write the number of its class into each pixel.'


def some(names: Sequence) -> str:
    """The first few names, and how many there are."""
    shown = ', '.join(repr(n) for n in list(names)[:SHOWN])
    return f'[{shown}{f", ... {len(names)} in all" if len(names) > SHOWN else ""}]'
