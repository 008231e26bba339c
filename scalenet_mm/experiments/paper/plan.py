"""What one row of the paper needs, and what is expected of it; nothing is built, fetched or run here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...commands.cfg_options import CfgOptions, setting
from ...compat import configs_dir
from ...file_names import DIGEST
from ...runner.config import load_config, walk
from .public import PublicData, public_data
from .recount import ROWS, Row, find

ROOT = configs_dir().resolve().parent  # an editable install's .mim links there
GPUS = 8  # Sec. IV-A1; COCO and ADE20K: the frameworks' default


@dataclass(frozen=True)
class Checkpoint:
    """What a run starts from."""

    key: str  # where the config names it
    address: str  # as named there, or what the user named instead
    digits: str | None  # with which the file's SHA-256 begins, if its name carries them

    @property
    def scheme(self) -> str:
        """``https``, ``hf``, ``torchvision``, ...; empty for a file."""
        return self.address.partition('://')[0] if self.remote else ''

    @property
    def remote(self) -> bool:
        return '://' in self.address

    @property
    def name(self) -> str:
        return self.address.rpartition('/')[2]


@dataclass(frozen=True)
class Plan:
    """One run."""

    name: str  # the row's key, or the config's name
    row: Row | None  # of the paper; None for a config of one's own
    config: Path  # absolute
    options: tuple[str, ...]  # ``key=value`` as ``tools/train.py --cfg-options`` takes them
    extra: tuple[str, ...]  # other arguments of ``tools/train.py``
    gpus: int
    cpu: bool  # go on without any GPU
    other_data: bool  # go on with another number of images than the data set's
    seed: int
    cfg: Config  # with the options
    data: PublicData | None  # that it reads, if any
    checkpoint: Checkpoint | None
    given: str | None  # the checkpoint that the user named instead of the config's

    @property
    def file(self) -> str:
        """The config as the commands name it, from the repository's folder."""
        inside = self.config.is_relative_to(ROOT)
        return self.config.relative_to(ROOT).as_posix() if inside else str(self.config)

    @property
    def slug(self) -> str:
        return f'{self.name.replace("/", "-")}-seed{self.seed}'

    @property
    def trains(self) -> bool:
        """Whether there is anything to train; the paper's base networks are tested as they are."""
        return not (self.row and self.row.epochs == 0)

    @property
    def data_root(self) -> str:
        loader = self.cfg.get('test_dataloader') or self.cfg.train_dataloader
        return self.cfg.get('data_root') or loader.dataset.get('data_root', '')

    @property
    def last(self) -> str:
        """File name of the last checkpoint."""
        loop = self.cfg.train_cfg
        by_epoch = loop.get('by_epoch', 'max_epochs' in loop)
        return f'epoch_{loop.max_epochs}.pth' if by_epoch else f'iter_{loop.max_iters}.pth'

    @property
    def batch(self) -> int:
        """Images of one step on all GPUs."""
        return self.gpus * self.cfg.train_dataloader.batch_size

    @property
    def expected(self) -> dict[str, float]:
        """The paper's metrics; empty where it prints none."""
        printed = self.row.result if self.row else {}
        return {name: value for name, value in printed.items() if name != 'hours'}

    @property
    def hours(self) -> float | None:
        """As the paper prints them (Table VII) for a row of the same config."""
        same = [r for r in ROWS if self.row and r.config == self.row.config]
        return next((r.result['hours'] for r in same if 'hours' in r.result), None)

    def train(self, work_dir: str, checkpoint: str | None) -> list[str]:
        """The training's command."""
        start = [setting(self.checkpoint.key, checkpoint)] if checkpoint else []
        options = [*self.options, *start, f'randomness.seed={self.seed}']
        end = ['--work-dir', work_dir, *self.extra, '--cfg-options', *options]
        if self.gpus == 1:
            return ['python', 'tools/train.py', self.file, *end]
        return ['bash', 'tools/dist_train.sh', self.file, str(self.gpus), *end]

    def test(self, checkpoint: str, work_dir: str, out: str) -> list[str]:
        """The evaluation's command."""
        end = ['--work-dir', f'{work_dir}/test', '--out', out]
        end += ['--cfg-options', *self.options] if self.options else []
        if self.gpus == 1:
            return ['python', 'tools/test.py', self.file, checkpoint, *end]
        return ['bash', 'tools/dist_test.sh', self.file, checkpoint, str(self.gpus), *end]


def make_plan(
    row: str,
    gpus: int | None = None,
    seed: int = 0,
    checkpoint: str | None = None,
    options: Sequence[str] = (),
    extra: Sequence[str] = (),
    cpu: bool = False,
    other_data: bool = False,
) -> Plan:
    """Reads the config of a row of the paper, or a config of any kind.

    Args:
        row: key of ``recount.ROWS``, or path of a config.
        gpus: processes; default: the paper's 8 for a row, 1 for a config.
        checkpoint: file or address instead of the config's.

    Raises:
        SystemExit: if there is no such row or config, or nothing is trained by it.
    """
    entry = None if row.endswith('.py') or '::' in row else _row(row)
    config = configs_dir() / entry.config if entry else row
    parsed = parse_options(options)
    if (other := parsed.get('randomness.seed')) is not None:
        raise SystemExit(f'--cfg-options randomness.seed={other} would be overwritten; write --seed {other}.')
    cfg = load_config(str(config), options=parsed)
    if missing := [name for name in ('model', 'train_dataloader', 'train_cfg') if not cfg.get(name)]:
        raise SystemExit(f'{config} has no {" and no ".join(missing)}: reproduce trains a model and tests it.')
    return Plan(
        name=entry.key if entry else Path(str(row).rpartition('::')[2]).stem,
        row=entry,
        config=Path(cfg.filename).resolve(),
        options=tuple(options),
        extra=tuple(extra),
        gpus=gpus or (GPUS if entry else 1),
        cpu=cpu,
        other_data=other_data,
        seed=seed,
        cfg=cfg,
        data=public_data(cfg),
        checkpoint=_checkpoint(cfg, checkpoint),
        given=checkpoint,
    )


def wherever(config: str, data_root: str) -> str:
    """A config's text without the place of its data, which may be another by then, and the line breaks that follow it.

    >>> wherever("data_root='/mnt/coco/'", '/mnt/coco/') == wherever("data_root= 'data/'", 'data/')
    True
    """
    return ''.join((config.replace(data_root, 'DATA') if data_root else config).split())


def _row(key: str) -> Row:
    try:
        return find(key)
    except ValueError as e:
        raise SystemExit(f'{e} --list prints all; a config is named by its path.') from None


def _checkpoint(cfg: Config, given: str | None) -> Checkpoint | None:
    """The file that a config starts from: ``load_from``, or the first ``checkpoint`` of its model."""
    named = {'load_from': cfg.get('load_from')} if cfg.get('load_from') else {}
    for path, value in walk(cfg.model):
        if path[-1] == 'checkpoint' and isinstance(value, str):
            named['.'.join(map(str, ('model', *path)))] = value
    if not named:
        return Checkpoint('load_from', given, _digits(given)) if given else None
    key, address = next(iter(named.items()))
    # a file that stands in for a published one must still be that one
    return Checkpoint(key, given or address, _digits(address) or _digits(given or ''))


def _digits(name: str) -> str | None:
    found = DIGEST.search(name)
    return found[1] if found else None


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """What ``--cfg-options`` makes of its words."""
    p = argparse.ArgumentParser(exit_on_error=False)
    p.add_argument('--cfg-options', nargs='*', action=CfgOptions, default={})
    try:
        return p.parse_args(['--cfg-options', *words]).cfg_options if words else {}
    except argparse.ArgumentError as error:
        raise SystemExit(str(error)) from None
