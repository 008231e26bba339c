"""Which checkpoint ``--resume`` continues from, and that no other one is lost by it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ..checkpoint.reading import read_checkpoint
from ..checkpoint.strict import CheckpointError

POINTER = 'last_checkpoint'  # mmengine's: the path of the last checkpoint, as it was when it was written
NUMBERED = re.compile(r'(?P<best>best_.+_)?(?P<unit>epoch|iter)_(?P<number>\d+)\.pth')
NEEDED = ('meta', 'message_hub', 'state_dict')  # what mmengine continues from


def checkpoint_folder(work_dir: str | Path, out_dir: str | Path | None = None) -> Path:
    """Where a run's checkpoints are: mmengine makes a folder of the work dir's name in an ``out_dir``."""
    elsewhere = out_dir and str(out_dir) != str(work_dir)
    return Path(out_dir, Path(work_dir).name) if elsewhere else Path(work_dir)


def latest(work_dir: str | Path, out_dir: str | Path | None = None) -> str | None:
    """The last checkpoint of a run, also in a folder that was copied, moved or renamed; None if there is none.

    It is the one of the name that ``last_checkpoint`` says, in this folder rather than where it was written; one of
    the same kind that was written after that (a run may be killed between the two); and without ``last_checkpoint`` the
    one of the highest number.

    Raises:
        SystemExit: if checkpoints are there, and it is not clear which is the last; the message names them.
    """
    folder, pointer = checkpoint_folder(work_dir, out_dir), Path(work_dir, POINTER)
    text = pointer.read_text().strip() if pointer.is_file() else ''
    if '://' in text:
        return text
    there = {p: m for p in sorted(folder.glob('*.pth')) if (m := NUMBERED.fullmatch(p.name))}
    places = [p for p in (folder / Path(text).name, Path(text)) if text and p.exists()]
    if places:
        last, written = places[0], pointer.stat().st_mtime_ns
        later = {p: m for p, m in there.items() if _after(m, last) and p.stat().st_mtime_ns > written}
        return str(max(later, key=lambda p: int(later[p]['number']), default=last))
    plain = {p: int(m['number']) for p, m in there.items() if not m['best']}
    if plain and len({there[p]['unit'] for p in plain}) == 1:
        found = max(plain, key=plain.get)
        why = f'{POINTER} names {text}, which is not there' if text else f'{folder} has no {POINTER}'
        print_log(f'--resume: {why}; it continues from {found}, the last one in the folder.', 'current')
        return str(found)
    if there or text:
        raise SystemExit(
            f'--resume: {f"{POINTER} names {text}, which is not there" if text else f"there is no {POINTER}"} in '
            f'{work_dir}. '
            + (f'Name the checkpoint to continue from: {_options(there)}' if there else 'Leave --resume out to start.')
        )
    return None


def _after(match: re.Match, last: Path) -> bool:
    """Whether a checkpoint is a later one of the same kind."""
    mine = NUMBERED.fullmatch(last.name)
    same = mine and (mine['best'], mine['unit']) == (match['best'], match['unit'])
    return bool(same) and int(match['number']) > int(mine['number'])


def _options(files: Any) -> str:
    return ', or '.join(f'--resume {file}' for file in files)


def require_continuable(cfg: Mapping[str, Any], file: str, content: Mapping[str, Any] | None = None) -> None:
    """Refuses a checkpoint that no run can continue from, and a run that would write over other checkpoints.

    Args:
        cfg: of the run, with its work dir.
        content: of ``file``, if it was read already.

    Raises:
        CheckpointError: naming the file and the ways out; see also ``read_checkpoint``.
    """
    content = read_checkpoint(file) if content is None else content
    meta = content.get('meta') or {}
    lacking = [k for k in NEEDED if k not in content] + [k for k in ('epoch', 'iter') if k not in meta]
    if lacking:
        raise CheckpointError(
            f'{file} is no checkpoint that a run continues from: it has no {", no ".join(lacking)}. To start a run '
            f'from its weights, leave --resume out and add --cfg-options load_from={file}.'
        )
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    folder = checkpoint_folder(cfg['work_dir'], hook.get('out_dir'))
    mine = Path(file).resolve().parent == folder.resolve()
    lost = [
        p.name
        for p in sorted(folder.glob('*.pth'))
        if (m := NUMBERED.fullmatch(p.name))
        and p.resolve() != Path(file).resolve()
        and not (mine and (m['best'] or int(m['number']) <= meta[m['unit']]))
    ]
    if lost:
        raise CheckpointError(
            f'{folder} holds {", ".join(lost)}, which a run that continues from {file} (epoch {meta["epoch"]}, '
            f'iteration {meta["iter"]}) would write over. Continue from the last one there with --resume alone, choose '
            'another --work-dir, or move them away.'
        )


def settle(cfg: Config) -> None:
    """Fills in, in place, which file a config with ``resume=True`` and no ``load_from`` continues from."""
    if cfg.get('resume') and not cfg.get('load_from'):
        hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
        cfg.load_from = latest(cfg.work_dir, hook.get('out_dir'))
        cfg.resume = cfg.load_from is not None
