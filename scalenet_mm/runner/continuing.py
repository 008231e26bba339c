"""Which checkpoint ``--resume`` continues from, and that no other one is lost by it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log

from ..checkpoint.delta_file import SUFFIX
from ..checkpoint.reading import read_checkpoint
from ..checkpoint.strict import CheckpointError
from ..compat import checkpoint_folder, read_config
from ..file_names import local_path

POINTER = 'last_checkpoint'  # mmengine's: the path of the last checkpoint, as it was when it was written
NAMES = {'epoch_{}.pth': 'epoch', 'iter_{}.pth': 'iter'}  # mmengine's, and what their number counts
NEEDED = ('meta', 'message_hub', 'state_dict')  # what mmengine continues from, and by part of the config and hook:
STATES = (('optim_wrapper', 'optimizer', 'save_optimizer'),)
STATES += (('param_scheduler', 'param_schedulers', 'save_param_scheduler'),)


class Saved(NamedTuple):
    """What the name of a checkpoint says.

    Attributes:
        best: of which measure it is the best (``best_acc_``); empty for the others.
        unit: ``epoch`` or ``iter``.
        number: of epochs or iterations; -1 where the name has none.
    """

    best: str
    unit: str
    number: int


@dataclass(frozen=True)
class CheckpointFolder:
    """Where a run writes its checkpoints, by which names, and what one must hold for the run to continue from it.

    Attributes:
        path: mmengine makes a folder of the work dir's name in an ``out_dir``.
        names: unit of each ``filename_tmpl``.
        needed: keys of a checkpoint.
    """

    path: Path
    names: Mapping[str, str]
    needed: tuple[str, ...]

    @classmethod
    def of(cls, cfg: Mapping[str, Any], work_dir: str | Path) -> CheckpointFolder:
        hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
        hooks = [h for h in (hook, *(cfg.get('custom_hooks') or ())) if isinstance(h, Mapping)]
        named = {h['filename_tmpl']: h for h in hooks if h.get('filename_tmpl')}
        return cls(
            checkpoint_folder(work_dir, hook.get('out_dir')),
            {**NAMES, **{name: 'epoch' if h.get('by_epoch', True) else 'iter' for name, h in named.items()}},
            (*NEEDED, *(key for part, key, save in STATES if cfg.get(part) and hook.get(save, True))),
        )

    def saved(self) -> dict[Path, Saved]:
        """The checkpoints that are there."""
        found = {p: _parsed(p.name, self.names) for p in sorted(self.path.glob('*'))}
        return {p: s for p, s in found.items() if s}

    def position(self, file: str | Path, content: Mapping[str, Any] | None = None) -> dict[str, int]:
        """Number of epochs and of iterations after which a checkpoint was written; ``content`` if it was read already.

        Raises:
            CheckpointError: if no run can continue from it.
        """
        content = read_checkpoint(file) if content is None else content
        kinds = {key: Mapping if key in NEEDED else (Mapping, list) for key in self.needed}
        lacking = [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]
        meta = content['meta'] if 'meta' not in lacking else {}
        position = {unit: meta.get(unit) for unit in ('epoch', 'iter')}
        lacking += [unit for unit in position if unit not in meta]
        if lacking:
            raise CheckpointError(
                f'{file} is no checkpoint that a run continues from: it has no {", no ".join(lacking)}. '
                + weights_only(file)
            )
        wrong = {k: v for k, v in position.items() if type(v) is not int or v < 0}
        if wrong:
            raise CheckpointError(
                f'{file} is no checkpoint that a run continues from: epoch and iter of its meta are numbers from 0, '
                f'and it has {", ".join(f"{k}={v!r}" for k, v in wrong.items())}. {weights_only(file)}'
            )
        return position

    def written_over(self, file: str | Path, position: Mapping[str, int]) -> list[str]:
        """Names of the other checkpoints there that a run which continues from ``file`` would write over."""
        file = local_path(file).resolve()
        mine = file.parent == self.path.resolve()
        return [
            p.name
            for p, s in self.saved().items()
            if p.resolve() != file and not (mine and (s.best or s.number <= position[s.unit]))
        ]

    def continuable(self) -> list[Path]:
        """The checkpoints there that a run can continue from and write over no other."""
        saved, found = self.saved(), []
        for file, mine in saved.items():
            if any(s.unit == mine.unit and s.number > mine.number and not s.best for s in saved.values()):
                continue  # its name says so: it need not be read
            position = self.position_if_whole(file)
            if position and not self.written_over(file, position):
                found.append(file)
        return found

    def position_if_whole(self, file: Path) -> dict[str, int] | None:
        """None if no run can continue from it; mmengine's best checkpoints, for one, lack the optimizer's states."""
        try:
            return self.position(file)
        except CheckpointError:
            return None


def latest(work_dir: str | Path, cfg: Mapping[str, Any] | None = None) -> str | None:
    """The last checkpoint of a run, also in a folder that was copied, moved or renamed; None if there is none.

    It is the one of the name that ``last_checkpoint`` says, in this folder rather than where it was written; one of
    the same kind that was written after that (a run may be killed between the two); without ``last_checkpoint`` the
    one of the highest number; and only where this folder has none, the one where ``last_checkpoint`` says.

    Args:
        cfg: of the run, if its ``CheckpointHook`` may have an ``out_dir`` or a ``filename_tmpl``.

    Raises:
        SystemExit: if checkpoints are there, and it is not clear which is the last; the message names those that a run
            can continue from.
    """
    folder, pointer = CheckpointFolder.of(cfg or {}, work_dir), Path(work_dir, POINTER)
    text = pointer.read_text().strip() if pointer.is_file() else ''
    if '://' in text:
        return text
    there, last = folder.saved(), folder.path / Path(text).name
    if text and last.exists():
        kind, written = _parsed(last.name, folder.names), pointer.stat().st_mtime_ns
        later = {p: s for p, s in there.items() if kind and s[:2] == kind[:2] and s.number > kind.number}
        later = [p for p in later if p.stat().st_mtime_ns > written]
        return str(max(later, key=lambda p: there[p].number, default=last))
    plain = {p: s.number for p, s in there.items() if not s.best}
    if plain and len({there[p].unit for p in plain}) == 1:
        found = max(plain, key=plain.get)
        why = f'{POINTER} names {text}, which is not in {folder.path}' if text else f'{folder.path} has no {POINTER}'
        print_log(f'--resume: {why}; it continues from {found}, the last one in the folder.', 'current')
        return str(found)
    if text and not there and Path(text).exists():
        return text
    if there or text:
        raise SystemExit(
            f'--resume: {f"{POINTER} names {text}, which is not there" if text else f"there is no {POINTER}"} in '
            f'{work_dir}. ' + (_ways(folder) if there else 'Leave --resume out to start.')
        )
    return None


def _parsed(name: str, names: Mapping[str, str]) -> Saved | None:
    """What a file's name says, if it is that of a checkpoint."""
    for template, unit in names.items():
        parts = Formatter().parse(template)
        pattern = ''.join(re.escape(text) + (r'(\d+)' if field is not None else '') for text, field, *_ in parts)
        if match := re.fullmatch(f'(best_.+_)?{pattern}', name):
            best, number, *_ = (*match.groups(), -1)
            return Saved(best or '', unit, int(number))
    return None


def _ways(folder: CheckpointFolder) -> str:
    """How to continue where the last checkpoint of a folder is not the one, or not known."""
    if files := folder.continuable():
        return 'Name the checkpoint to continue from: ' + ', or '.join(f'--resume {quoted(file)}' for file in files)
    if files := [file for file in folder.saved() if folder.position_if_whole(file)]:
        last = quoted(files[-1])
        return f'A run from {last} would write over others there: add another --work-dir to --resume {last}.'
    weights = {s.number: file for file, s in folder.saved().items() if has_weights(file)}
    if not weights:
        return 'None of them can be read: leave --resume out, and name another --work-dir.'
    last = weights_only(weights[max(weights)])
    return f'None of them holds the states that a run continues from. {last} Name another --work-dir too.'


def quoted(word: str | Path) -> str:
    """A word of a command that is to be copied."""
    return shlex.quote(str(word))


def has_weights(file: Path) -> bool:
    try:
        return 'state_dict' in read_checkpoint(file)
    except CheckpointError:
        return False


def weights_only(file: str | Path) -> str:
    """The way out where a run cannot continue from a checkpoint."""
    if str(file).endswith(SUFFIX):
        return f'It is a delta; scalenet delta apply BASE {file} OUT.pth makes a checkpoint of it, for load_from.'
    return f'To start a run from its weights, leave --resume out and add --cfg-options {quoted(f"load_from={file}")}.'


def require_continuable(cfg: Mapping[str, Any], file: str, content: Mapping[str, Any] | None = None) -> None:
    """Refuses a checkpoint that no run can continue from, and a run that would write over other checkpoints.

    Args:
        cfg: of the run, with its work dir.
        content: of ``file``, if it was read already.

    Raises:
        CheckpointError: naming the file and the ways out; see also ``read_checkpoint``.
    """
    folder = CheckpointFolder.of(cfg, cfg['work_dir'])
    position = folder.position(file, content)
    if lost := folder.written_over(file, position):
        raise CheckpointError(
            f'{folder.path} holds {", ".join(lost)}, which a run that continues from {file} (epoch '
            f'{position["epoch"]}, iteration {position["iter"]}) would write over. Choose another --work-dir, or move '
            f'them away. {_ways(folder)}'
        )


def require_one_position(positions: Sequence[tuple[int, int]]) -> None:
    """Refuses to start processes at different epochs and iterations; they are given process by process.

    Raises:
        CheckpointError: naming the first that differs from process 0.
    """
    other = next((n for n, position in enumerate(positions) if position != positions[0]), None)
    if other is not None:
        at = [f'process {n} at epoch {positions[n][0]}, iteration {positions[n][1]}' for n in (0, other)]
        raise CheckpointError(
            f'The processes of this run would start {at[0]}, and {at[1]}: each looks for checkpoints in the work dir '
            'of its own machine. Share that folder, copy the checkpoint to each machine, or name one that all of them '
            'see with --resume FILE.'
        )


def settle(cfg: Config) -> None:
    """Fills in, in place, which file a config with ``resume=True`` continues from where nobody named one.

    Then mmdet's and mmpretrain's own tools have set ``load_from`` to None; mmseg's has left what the file says.
    """
    if not cfg.get('resume'):
        return
    named, file = cfg.get('load_from'), cfg.filename
    own = read_config(file) if file and Path(file).is_file() else {}
    if named and (named != own.get('load_from') or own.get('resume')):
        return
    if named and Path(named).is_file() and CheckpointFolder.of(cfg, cfg.work_dir).position_if_whole(Path(named)):
        return  # of a run too, and so it may be meant
    if last := latest(cfg.work_dir, cfg):
        cfg.load_from = last
    elif not named:
        cfg.load_from, cfg.resume = own.get('load_from'), False
