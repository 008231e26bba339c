"""Checkpoints that a killed process, a full disk or a crash cannot damage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import count
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ..checkpoint.delta_file import beside
from ..checkpoint.reading import read_checkpoint
from ..checkpoint.writing import UNFINISHED, pickled, write_atomically
from ..compat import resumed_from, type_class
from .continuing import POINTER, CheckpointFolder


class AtomicBackend(LocalBackend):
    """The local disk, each file written whole or not at all: ``backend_args=dict(backend='atomic')``."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        write_atomically(filepath, obj.encode(encoding))


register_backend('atomic', AtomicBackend, force=True)


@HOOKS.register_module()
class ScaleNetCheckpointHook(CheckpointHook):
    """mmengine's hook in a safe order: write, rename, point ``last_checkpoint`` at it, then remove what is outdated.

    mmengine's removes the old checkpoint first and overwrites files in place, so a run killed meanwhile may be left
    with none. This one needs room for one checkpoint more than ``max_keep_ckpts``. Arguments are the same; on a remote
    ``out_dir`` or with a ``backend_args`` of yours, the file itself is written by that backend. A run that starts anew
    where an earlier one wrote (mmengine's writes over it) keeps those checkpoints under other names.
    """

    _starts = False  # a run whose first file is not written yet

    def before_train(self, runner) -> None:
        folder = str(self.out_dir or runner.work_dir)
        local = '://' not in folder
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='atomic')
        resumed = resumed_from(runner)
        self._starts = local and not resumed
        if local and resumed:
            self._forget_others(runner, Path(resumed))
        super().before_train(runner)
        if local and is_main_process():
            for place in {Path(self.out_dir), Path(runner.work_dir)}:
                for leftover in place.glob('*' + UNFINISHED):
                    leftover.unlink()
                    runner.logger.info(f'Removed {leftover}, which a killed run had not finished.')

    def _keep_earlier(self, runner) -> None:
        """Before the first file of a run that starts anew: those of an earlier run in its folder are renamed."""
        if self._starts and is_main_process():
            folder = CheckpointFolder.of(runner.cfg, runner.work_dir)
            kept = [f'{path.name} as {_set_aside(path)}' for path in folder.saved()]
            if kept:
                Path(runner.work_dir, POINTER).unlink(missing_ok=True)
                runner.logger.info(
                    f'{folder.path} has checkpoints of an earlier run. They are kept: {", ".join(kept)}.'
                )
        self._starts = False

    def _forget_others(self, runner, resumed: Path) -> None:
        """Leaves alone what the resumed checkpoint's run has not written here.

        What that lists for removal is its own only in the folder that it lies in now; a best checkpoint of a later
        position is renamed, as this run may come to write one of its name.
        """
        folder, known = CheckpointFolder.of(runner.cfg, runner.work_dir), runner.message_hub.runtime_info
        continued = resumed.resolve().parent == folder.path.resolve()
        if not continued:
            known.pop('keep_ckpt_ids', None)
        for key in [k for k in known if k.startswith('best_ckpt')]:
            here = folder.path / Path(known[key] or '').name
            if continued and here.is_file():
                known[key] = str(here)
            else:
                del known[key]
        for path, saved in folder.saved().items() if is_main_process() else ():
            if saved.best and saved.number > getattr(runner, saved.unit):
                name = _set_aside(path)
                print_log(f'{path} is later than the checkpoint resumed from; it is kept as {name}.', 'current')

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        self._keep_earlier(runner)
        outdated: list[int] = []
        if self.max_keep_ckpts > 0 and list(self.keep_ckpt_ids)[-1:] != [step]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            # until it is removed the outdated one is listed too: a resumed run then removes it
            runner.message_hub.update_info('keep_ckpt_ids', [*outdated, *self.keep_ckpt_ids])
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        write_atomically(Path(runner.work_dir, POINTER), self.last_ckpt.encode())
        for old in outdated:
            _remove(self.file_backend, self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))
        if outdated:
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        if self.save_best:
            self._keep_earlier(runner)
        backend, later = self.file_backend, _RemovesLater(self.file_backend)
        self.file_backend = later
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        best = [getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()]
        for remove, path in later.removals:
            if path not in best:
                remove(path)

    @master_only
    def _publish_model(self, runner, ckpt_path: str) -> None:
        """As mmengine's, with the file's own digest in its name, which is what readers compare."""
        if '://' in ckpt_path:
            return super()._publish_model(runner, ckpt_path)
        content = read_checkpoint(ckpt_path)
        data = pickled({key: value for key, value in content.items() if key in self.published_keys})
        path = Path(ckpt_path)
        path = path.with_name(f'{path.stem}-{hashlib.sha256(data).hexdigest()[:8]}.pth')
        write_atomically(path, data)
        runner.logger.info(f'{ckpt_path} is published as {path}, with {", ".join(self.published_keys)}.')


class _RemovesLater:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend):
        self._backend = backend
        self.removals: list[tuple[Callable, str]] = []

    def remove(self, path: str) -> None:
        self.removals.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        self.removals.append((self._backend.rmtree, path))

    def __getattr__(self, name: str):
        return getattr(self._backend, name)


def _set_aside(path: Path) -> str:
    """Gives a file, and the delta beside it, a name that is free, and returns it: ``best_epoch_3.earlier_1.pth``."""
    free = next(p for n in count(1) if not (p := path.with_stem(f'{path.stem}.earlier_{n}')).exists())
    path.rename(free)
    if beside(path).exists():
        beside(path).rename(beside(free))
    return free.name


def _remove(backend, path: str) -> None:
    if backend.isfile(path):
        backend.remove(path)
    elif backend.isdir(path):  # DeepSpeed's checkpoints are folders
        backend.rmtree(path)


def make_atomic(cfg: Config) -> None:
    """Gives a config, in place, the safe order: ``ScaleNetCheckpointHook`` for mmengine's; a hook of yours stays."""
    hooks = dict(cfg.get('default_hooks') or {})
    checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))  # the Runner's
    if checkpoint and type_class(checkpoint, HOOKS) is CheckpointHook:
        hooks['checkpoint'] = dict(checkpoint, type='ScaleNetCheckpointHook')
        cfg.default_hooks = hooks
