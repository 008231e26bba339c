"""Write the demo data set: all scenes of the layouts asked for, atomically and once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2

from ...one_run import only_process
from ...progress import Progress
from .dataset_layouts import LAYOUTS
from .digits import SPLITS, digit_set
from .manifest import NotOurs, verify_manifest, write_manifest

GENERATOR_VERSION = 2  # raise it with every change that alters what is drawn or written
LOCK = '.demo_data.lock'
LOCK_WAIT_S = 5.0  # workers of a killed run let go of the lock within a second
PARTIAL = '.{}.partial'


def make_demo_data(
    out: str | os.PathLike,
    layouts: Sequence[str] = tuple(LAYOUTS),
    *,
    train: int | None = None,
    val: int | None = None,
    size: int | None = None,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Path]:
    """Make the demo data set in ``out``, one folder a layout; what is there already is verified.

    Every layout is written beside its place and renamed when complete, so an interrupted call
    leaves no half-made folder, and the next call starts over.

    Args:
        out: Folder that receives ``imagenet``, ``coco`` and ``ade``.
        train, val: Numbers of scenes of each layout; None for the layout's own default.
        size: Side of the images in pixels; None for the default.
        workers: Number of processes. It does not change what is written.
        overwrite: Replace demo data made with other parameters or changed since.
        progress: Whether to show how far each layout is.

    Returns:
        The folder of each layout.

    Raises:
        ValueError: If a layout is unknown, a number is not positive, or a folder was changed.
        FileExistsError: If a folder holds something else, or was made with other parameters.
        BlockingIOError: If another process is writing to ``out``.
        ImportError: If scikit-learn is missing.
    """
    unknown = [name for name in layouts if name not in LAYOUTS]
    if unknown:
        raise ValueError(f'layouts must be among {tuple(LAYOUTS)}, got {unknown}')
    counts = {'train': train, 'val': val, 'size': size, 'workers': workers}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    made = {}
    with _locked(out):
        for name in layouts:
            spec = LAYOUTS[name]
            parameters = {
                'layout': name,
                'generator': GENERATOR_VERSION,
                'seed': seed,
                'train': spec.train if train is None else train,
                'val': spec.val if val is None else val,
                'size': spec.size if size is None else size,
            }
            made[name] = _make_layout(out, parameters, workers, overwrite, progress)
    return made


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder for this process; the kernel frees it however the process ends."""
    refusal = f'demo data is being written to {out} ({{holder}}); wait for it to end, or name another output folder'
    with only_process(out / LOCK, refusal, LOCK_WAIT_S, with_forked=True):
        yield


def _make_layout(out: Path, parameters: dict, workers: int, overwrite: bool, progress: bool) -> Path:
    """Write one layout unless its folder already holds it."""
    root = out / parameters['layout']
    if root.exists():
        try:
            verify_manifest(root, parameters)
            return root
        except (FileExistsError, ValueError) as error:
            if not overwrite or isinstance(error, NotOurs):
                raise
    partial_root = out / PARTIAL.format(root.name)
    shutil.rmtree(partial_root, ignore_errors=True)  # what a killed run left
    partial_root.mkdir()
    try:
        _write_scenes(partial_root, parameters, workers, progress)
        write_manifest(partial_root, parameters)
        if root.exists():
            shutil.rmtree(root)
        partial_root.rename(root)
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    return root


def _write_scenes(root: Path, parameters: dict, workers: int, progress: bool) -> None:
    spec = LAYOUTS[parameters['layout']]
    jobs = [(split, index) for split in SPLITS for index in range(parameters[split])]
    for split in SPLITS:
        digit_set(split)  # loaded before the workers are forked, and missing packages told early
    draw = partial(_write_scene, root, parameters)
    records: dict[str, list[dict]] = {split: [] for split in SPLITS}
    shown = Progress(parameters['layout'], len(jobs), unit='scene') if progress else contextlib.nullcontext()
    with shown, _mapper(min(workers, len(jobs))) as mapper:
        for done, ((split, _), record) in enumerate(zip(jobs, mapper(draw, jobs)), start=1):
            records[split].append(record)
            if progress:
                shown.update(done)
    for split in SPLITS:
        spec.write_index(root, split, records[split])


def _write_scene(root: Path, parameters: dict, job: tuple[str, int]) -> dict:
    spec, (split, index) = LAYOUTS[parameters['layout']], job
    image, instances = spec.scene(parameters['seed'], split, index, parameters['size'])
    return spec.write_scene(root, split, index, image, instances)


@contextlib.contextmanager
def _mapper(workers: int) -> Iterator[Callable]:
    """An ordered, lazy ``map`` over this process or a pool of forked ones."""
    if workers == 1:
        yield map
        return
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # OpenCV's own threads do not survive a fork
    try:
        context = multiprocessing.get_context('fork')  # nothing is imported a second time
        # Workers end by themselves when this process is killed: their pipes close.
        with context.Pool(workers) as pool:
            yield partial(pool.imap, chunksize=16)
    finally:
        cv2.setNumThreads(threads)
