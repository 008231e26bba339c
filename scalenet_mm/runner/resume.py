"""Exact resume: randomness is a function of (seed, position), never of what ran before.

mmengine restores no generator state, and a saved state would not suffice: the validation loader draws from the same
generators, and persistent workers keep theirs. So every iteration is reseeded in the main process, and every sample
carries its own seed from the sampler to the worker.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sized

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import Dataset, Sampler

from ..checkpoint.strict import CheckpointError
from ..compat import type_name

MAIN, SAMPLE = 0, 1  # streams
SEEN = 'iterations_of_epoch'  # kept in checkpoints: how many are done, and of how many


def seed_host(*key: int) -> int:
    """Seeds random, numpy and torch's CPU generator from a tuple of integers; the seed for torch's other devices.

    A sample is read on the host. ``torch.manual_seed`` also visits every device, and where CUDA is not in use yet keeps
    a stack trace for later: half a millisecond a sample, more than a small image takes to read.
    """
    state = np.random.SeedSequence(key).generate_state(2)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]))
    torch.default_generator.manual_seed(int(state[1]))
    return int(state[1])


def seed_everything(*key: int) -> None:
    """Seeds random, numpy and torch (every device) from a tuple of integers."""
    torch.manual_seed(seed_host(*key))


@HOOKS.register_module()
class ReseedHook(Hook):
    """Seeds every training iteration from (``randomness.seed``, iteration, rank).

    A run that was saved within an epoch (``CheckpointHook(by_epoch=False)``) continues there; mmengine's would repeat
    that epoch from its first batch.

    Raises:
        ValueError: at the start, if ``randomness.seed`` is not set.
        CheckpointError: if a checkpoint was written within an epoch of another length.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner) -> None:
        if runner._randomness_cfg.get('seed') is None:
            raise ValueError("Exact resume needs a fixed seed; set randomness = dict(seed=0) or remove 'ReseedHook'.")
        loop, (done, length) = runner.train_loop, runner.message_hub.runtime_info.get(SEEN, (0, 0))
        if not (runner._resume and done and isinstance(loop, EpochBasedTrainLoop)):
            return
        if length != len(loop.dataloader):
            raise CheckpointError(
                f'{runner._load_from} was written after {done} of {length} iterations of epoch {loop.epoch + 1}, and '
                f'an epoch has {len(loop.dataloader)} now; continue with the batch size, processes and data that it '
                'had, or from a checkpoint of the end of an epoch.'
            )
        _skip(loop, done)

    def after_train_epoch(self, runner) -> None:  # before the checkpoint of an epoch is written
        runner.message_hub.update_info(SEEN, (0, 0))

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        runner.message_hub.update_info(SEEN, (batch_idx + 1, len(runner.train_dataloader)))
        seed_everything(MAIN, runner.seed, runner.iter, get_rank())


def _skip(loop: EpochBasedTrainLoop, done: int) -> None:
    """Lets the epoch that comes next begin after so many batches, which are read and dropped."""
    epoch = loop.epoch

    def run_iter(index: int, batch) -> None:
        if loop.epoch != epoch or index >= done:
            del loop.run_iter
            loop.run_iter(index, batch)

    loop.run_iter = run_iter


class SeededIndex(int):
    """A sample's index that carries the seed of its augmentation to the worker."""

    key: tuple[int, ...]

    def __new__(cls, index: int, key: tuple[int, ...] = ()):
        self = super().__new__(cls, index)
        self.key = key
        return self

    def __reduce__(self):
        return SeededIndex, (int(self), self.key)


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """Gives each index of another sampler a seed of its own: (seed, rank, epoch, position).

    Args:
        dataset: the data set.
        sampler: config of the sampler whose order is kept.
        seed: by default the Runner's.
    """

    def __init__(self, dataset: Sized, sampler: dict, seed: int | None = None):
        if seed is None:
            raise ValueError('SeededSampler needs a seed; set randomness = dict(seed=0) in the config.')
        self.seed = seed
        self.dataset = dataset  # samplers of batches look here
        self.inner = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.first = 0
        if hasattr(self.inner, 'skip'):  # mmengine asks whether there is one
            self.skip = self._skip

    def _skip(self, number: int) -> None:
        """Begins after so many indices, which are not read."""
        self.inner.skip(number)
        self.first = number

    def __iter__(self) -> Iterator[SeededIndex]:
        epoch = getattr(self.inner, 'epoch', 0)
        for position, index in enumerate(self.inner, self.first):
            yield SeededIndex(index, (SAMPLE, self.seed, get_rank(), epoch, position))

    def __len__(self) -> int:
        return len(self.inner)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.inner, 'set_epoch'):
            self.inner.set_epoch(epoch)


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Seeds the generators from the sample's index before the sample is read and augmented.

    Args:
        dataset: config of the data set, or the data set.
    """

    def __init__(self, dataset: dict | Dataset):
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __getitem__(self, index: int):
        if isinstance(index, SeededIndex):
            seed_host(*index.key)
        return self.dataset[int(index)]

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def pipeline(self):
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, value) -> None:  # mmdet's PipelineSwitchHook
        self.dataset.pipeline = value

    def __getattr__(self, name: str):  # metainfo, CLASSES, full_init, ...
        if name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)


def make_resumable(cfg) -> None:
    """Makes a config's training exactly resumable, in place: seed, hook, sampler and data set.

    A batch sampler that groups samples (mmdet's aspect-ratio one) keeps the indices as they are, so their seeds too.
    """
    randomness = cfg.get('randomness') or {}
    cfg.randomness = {**randomness, 'seed': 0 if randomness.get('seed') is None else randomness['seed']}
    hooks = list(cfg.get('custom_hooks') or [])
    if 'ReseedHook' not in (type_name(hook) for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='ReseedHook')]
    loader = cfg.get('train_dataloader')
    for key, kind in (('dataset', 'SeededDataset'), ('sampler', 'SeededSampler')):
        if loader and type_name(loader[key]) != kind:
            loader[key] = dict(type=kind, **{key: loader[key]})
            if key == 'sampler':  # mmengine hands none on with diff_rank_seed
                loader[key]['seed'] = cfg.randomness['seed']
