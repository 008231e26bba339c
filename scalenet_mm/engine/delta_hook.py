"""Deltas in a run: written beside its checkpoints, and put on a base before evaluation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from torch import nn

from ..checkpoint.assemble import base_name, make_delta
from ..checkpoint.delta_file import SUFFIX, apply_delta, beside, read_delta
from ..checkpoint.digests import digests
from ..checkpoint.reading import read_checkpoint, unwrap
from ..checkpoint.supplied import pretrained_files
from ..compat import bare, checkpoint_folder, resumed_from
from ..core.growth import own_start
from ..core.roles import scaled_hosts

RECORD = 'delta_base'  # what the run started from, kept in its checkpoints for when it is resumed


@HOOKS.register_module()
class DeltaHook(Hook):
    """Writes ``<checkpoint>.delta.safetensors`` beside each checkpoint of the run, the best one included.

    A delta is made of its checkpoint's file (so of the averaged weights, with EMA): the trainable entries, those the
    run's ``load_from`` did not supply (new layers of ``growth='random'`` among them), and any other that changed since
    the start, such as statistics of BatchNorms in training. It goes when its checkpoint goes.
    """

    priority = 'LOWEST'  # after CheckpointHook

    def __init__(self):
        self._supplied: set[str] = set()
        self._written: dict[Path, Path] = {}  # delta -> its checkpoint

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            return
        self._supplied = _supplied(bare(runner.model), checkpoint)

    def before_run(self, runner) -> None:
        hooks = [h for h in runner.hooks if isinstance(h, CheckpointHook)]
        self._folder = checkpoint_folder(runner.work_dir, next((h.out_dir for h in hooks if h.out_dir), None))
        deltas = {*self._folder.glob(f'*{SUFFIX}')} if runner._resume else set()
        # before CheckpointHook removes what is more than is kept
        files = sorted(self._folder.glob('*'), key=lambda path: path.suffix == '.pth')  # above epoch_1.onnx
        self._written = {d: p for p in files if (d := beside(p)) in deltas}

    def before_train(self, runner) -> None:
        if runner._resume and RECORD in runner.message_hub.runtime_info:
            self._make_up_for_the_last(runner)
            return
        self._written = {}
        state = bare(runner.model).state_dict()
        found = digests(state)
        values = [name for name in found if state[name].is_floating_point()]  # not derived indices
        base, new = 'unknown', []
        if runner._resume:
            print_log(
                'DeltaHook: the checkpoint resumed from was written without this hook, so what its run started from is '
                'not known; write its delta with scalenet delta export CKPT --base BASE.',
                'current',
                logging.WARNING,
            )
        elif self._supplied:
            base = base_name(runner._load_from)
            new = [name for name in values if name not in self._supplied]
        else:
            base, new = self._of_init_cfg(runner, values)
        new = sorted({*new, *own_start(bare(runner.model)), *_optional(bare(runner.model)) & {*values}})
        runner.message_hub.update_info(RECORD, dict(base=base, new=new, digests=found))

    @staticmethod
    def _of_init_cfg(runner, names: list[str]) -> tuple[str, list[str]]:
        """The base where ``init_cfg`` names it: of the model, or of its backbone, and everything beside that is new."""
        model = bare(runner.model)
        if whole := pretrained_files(model):
            given = _supplied(model, read_checkpoint(whole[0]))
            return base_name(whole[0]), [name for name in names if name not in given]
        hosts = [(n, m) for n, m in scaled_hosts(model) if pretrained_files(m)]
        files = [file for _, m in hosts for file in pretrained_files(m)]
        if not files:
            print_log(
                'DeltaHook: this run started from random weights (neither load_from nor a Pretrained init_cfg), so its '
                'deltas fit no other run; name a base, or leave the hook out.',
                'current',
                logging.WARNING,
            )
        prefixes = tuple(f'{n}.' if n else '' for n, _ in hosts)
        return base_name(files[0]) if files else 'random', [n for n in names if not n.startswith(prefixes)]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._follow(runner)

    def after_train_epoch(self, runner) -> None:
        self._follow(runner)

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        if runner._train_loop is not None:
            self._follow(runner, metrics)

    @master_only
    def _make_up_for_the_last(self, runner) -> None:
        """The delta of the checkpoint resumed from, where its run ended between writing the two."""
        resumed = Path(resumed_from(runner) or '')
        target = beside(resumed)
        if resumed.is_file() and resumed.resolve().parent == self._folder.resolve() and not target.exists():
            self._write(runner, read_checkpoint(resumed), target, None)
            self._written[target] = resumed

    @master_only
    def _follow(self, runner, metrics: dict | None = None) -> None:
        """Brings the deltas up to their checkpoints; metrics go to those of the weights that were just validated."""
        for path in _checkpoints(runner):
            target = beside(path)
            fresh = target.exists() and target.stat().st_mtime_ns >= path.stat().st_mtime_ns
            if fresh and not metrics:
                continue
            checkpoint = read_checkpoint(path)
            validated = bool(metrics) and checkpoint['meta']['iter'] == runner.iter and self._stored(runner)
            if not fresh or validated:
                self._write(runner, checkpoint, target, metrics if validated else None)
                self._written[target] = path
        for target, path in list(self._written.items()):
            if not path.exists():
                target.unlink(missing_ok=True)
                del self._written[target]

    def _stored(self, runner) -> bool:
        """Whether what is validated is what checkpoints hold, which is the average where one is kept."""
        return all(getattr(hook, 'evaluate_on_ema', True) for hook in runner.hooks)

    def _write(self, runner, checkpoint: dict, target: Path, metrics: dict | None) -> None:
        record, model = runner.message_hub.get_info(RECORD), bare(runner.model)
        state = unwrap(checkpoint)
        found = digests(state)
        changed = {name for name, p in model.named_parameters() if p.requires_grad}
        changed |= {*record['new']} | {n for n in found if found[n] != record['digests'].get(n)}
        meta = checkpoint['meta']
        delta = make_delta(state, changed, model, record['base'], meta['cfg'], meta, metrics, found)
        delta.save(target)
        runner.logger.info(f'Delta of {len(delta.tensors)} tensors, {target.stat().st_size:,} bytes: {target.name}')


@HOOKS.register_module()
class ApplyDeltaHook(Hook):
    """Puts a delta on the base that ``load_from`` named, before evaluation: ``tools/test.py CONFIG BASE --delta FILE``.

    Args:
        delta: what ``read_delta`` takes.

    Raises:
        CheckpointError: if it does not fit the base, see ``checkpoint.delta_file.check``.
        RuntimeError: in training.
    """

    priority = 'VERY_HIGH'

    def __init__(self, delta: str):
        self.delta = delta
        read_delta(delta)  # what is wrong with the file is said before the data are read

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint.pop('ema_state_dict', None)  # which mmpretrain's EMAHook swaps in where nothing is resumed too

    def before_train(self, runner) -> None:
        raise RuntimeError(
            'ApplyDeltaHook is for evaluation. To train on from a delta, write the full checkpoint with scalenet delta '
            'apply BASE DELTA OUT.pth and name it in load_from.'
        )

    def before_val(self, runner) -> None:
        self.before_test(runner)

    def before_test(self, runner) -> None:
        averaged = [bare(h.ema_model.module) for h in runner.hooks if isinstance(h, EMAHook)]
        for model in (bare(runner.model), *averaged):  # EMAHook evaluates its own copy
            delta = apply_delta(model, self.delta)
        print_log(f'Delta {self.delta} is on {delta.base}.', 'current')


def _supplied(model: nn.Module, checkpoint: Mapping[str, Any]) -> set[str]:
    """Names of the model's tensors that a file supplies. Scaled backbones are complete, or were refused."""
    given, hosts = unwrap(checkpoint), tuple(f'{n}.' if n else '' for n, _ in scaled_hosts(model))
    return {
        name
        for name, value in model.state_dict().items()
        if name.startswith(hosts) or (name in given and given[name].shape == value.shape)
    }


def _optional(model: nn.Module) -> set[str]:
    """Entries of scaled backbones that a base may lack."""
    hosts = ((f'{name}.' if name else '', host) for name, host in scaled_hosts(model))
    return {prefix + key for prefix, host in hosts if hasattr(host, 'optional_keys') for key in host.optional_keys()[0]}


def _checkpoints(runner) -> Iterator[Path]:
    """The checkpoint files that the run's CheckpointHook knows: the last one and the best."""
    hooks = [h for h in runner.hooks if isinstance(h, CheckpointHook)]
    for hook in hooks:
        best = getattr(hook, 'best_ckpt_path_dict', {}).values()
        for name in {hook.last_ckpt, getattr(hook, 'best_ckpt_path', None), *best} - {None}:
            if Path(name).is_file():
                yield Path(name)
