"""The models that a figure compares: pairs of config and checkpoint, with a name for the legend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from torch import nn

from ...checkpoint.delta_file import SUFFIX
from ...checkpoint.loading import build_model, load_weights
from ...compat import init_cfgs, quiet, read_config
from ...runner.continuing import latest
from ...runner.resume import seed_everything

RANDOM = 'none'  # in place of a checkpoint
HEAD_STD = 0.02  # of a head that mmpretrain starts at zero (ViT)


@dataclass(frozen=True)
class Given:
    """A model as the command line names it.

    Its checkpoint is a full one of any dialect (of the unscaled network too), ``BASE+DELTA``, the folder of a run (its
    latest checkpoint), or ``'none'`` for random weights.
    """

    config: str
    checkpoint: str
    label: str  # in legends

    @property
    def cfg(self) -> Config:
        return read_config(self.config)

    def load(self, device: str | torch.device | None = None) -> nn.Module:
        """The model in eval mode.

        Raises:
            FileNotFoundError: if there is no checkpoint.
            CheckpointError: if it does not fit the config.
        """
        model = load(self.cfg, self.checkpoint)
        model.to(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        model.eval()
        return model


def pairs(words: Sequence[str], labels: Sequence[str] | None = None) -> list[Given]:
    """Reads ``CONFIG CKPT CONFIG CKPT ...``; checks what can be checked before anything is computed.

    Raises:
        ValueError: if a config has no checkpoint, or the labels are not as many as the models.
        FileNotFoundError: if a file is not there.
    """
    if len(words) % 2:
        raise ValueError(
            f'Models are named by pairs CONFIG CKPT, but {len(words)} words were given; for random weights CKPT is '
            f'{RANDOM!r}.'
        )
    told = list(zip(words[::2], words[1::2]))
    if labels and len(labels) != len(told):
        raise ValueError(f'{len(told)} models need as many --labels, got {len(labels)}: {labels}.')
    for config, checkpoint in told:
        read_config(config)
        parts_of(checkpoint)
    names = list(labels or _labels(told))
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f'Several models are called {twice}; tell them apart with --labels.')
    return [Given(*pair, label) for pair, label in zip(told, names)]


def _labels(told: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The config's name, with the checkpoint's where a config comes twice."""
    stems = [Path(config.rpartition('::')[2]).stem for config, _ in told]
    for stem, (_, checkpoint) in zip(stems, told):
        weights = 'random' if checkpoint == RANDOM else Path(checkpoint).stem
        yield stem if stems.count(stem) == 1 else f'{stem}, {weights}'


def parts_of(checkpoint: str) -> tuple[str, str | None]:
    """Base (or full checkpoint) and delta.

    Raises:
        FileNotFoundError: if there is no such file, or a folder without a checkpoint.
        ValueError: if increments are to stand on random weights.
    """
    cuts = [i for i, letter in enumerate(checkpoint) if letter == '+']  # a path may hold one
    cut = next((i for i in cuts if Path(checkpoint[i + 1 :]).is_file()), cuts[-1] if cuts else len(checkpoint))
    base, plus, delta = checkpoint[:cut], checkpoint[cut : cut + 1], checkpoint[cut + 1 :]
    if not (plus and delta.endswith(SUFFIX)):
        base, delta = checkpoint, None
    if delta and base == RANDOM:
        raise ValueError(
            f'{checkpoint}: increments stand on the base they were trained from, so name it: BASE+{delta}.'
        )
    if delta and '://' not in delta and not Path(delta).is_file():
        raise FileNotFoundError(f'There are no increments {delta} (of {checkpoint}).')
    if base != RANDOM and '://' not in base and not Path(base).is_file():
        try:
            found = latest(base) if Path(base).is_dir() else None
        except SystemExit as e:
            raise FileNotFoundError(f'It is not clear which checkpoint of {base} is meant; name the file.') from e
        if not found:
            raise FileNotFoundError(
                f'There is no checkpoint {base}; name a file, the folder of a run, an address, or {RANDOM!r} for '
                'random weights.'
            )
        base = found
    return base, delta


def load(cfg: Config, checkpoint: str, seed: int = 0) -> nn.Module:
    """Builds the model of a config with the weights that ``Given.checkpoint`` describes, by the rules of
    `checkpoint.loading`.
    """
    base, delta = parts_of(checkpoint)
    seed_everything(seed)
    model = revert_sync_batchnorm(build_model(cfg))
    if base == RANDOM:
        _initialise(model)
    else:
        load_weights(model, base, delta)
    return model


def _initialise(model: nn.Module) -> None:
    """Random weights; what an ``init_cfg`` would fetch is not, and a head that starts at zero gets values, to pass
    gradients.
    """
    for module in model.modules():
        if getattr(module, 'init_cfg', None):
            module.init_cfg = init_cfgs(module)[1] or None
    with quiet('WARNING'):
        model.init_weights()
    for module in getattr(model, 'head', nn.Identity()).modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.trunc_normal_(module.weight, std=HEAD_STD)
