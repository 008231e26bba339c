"""Joins the processes that a launcher started, also where there is no GPU."""

from __future__ import annotations

import os
import subprocess

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.fileio import dump
from mmengine.hooks import logger_hook
from mmengine.registry import MODEL_WRAPPERS
from torch.nn.parallel import DistributedDataParallel

from ..compat import type_class

PLACE = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')  # as torch.distributed reads them
VARIABLES = {  # where each launcher puts them
    'pytorch': PLACE,
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def prepare(launcher: str, cfg: Config | None = None) -> None:
    """Call it before the Runner is built, whose own start works on accelerators only.

    Without one it makes the process group, with gloo (the Runner then leaves it as it is). On Slurm a port is derived
    from the job's number, so that two jobs on one machine do not meet.

    Args:
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        cfg: if given, its DDP wrapper is told that there are no devices.

    Raises:
        SystemExit: if the launcher's variables are not set, or this process has no GPU for itself.
    """
    if launcher == 'none':
        return
    place = dict(zip(PLACE, map(os.environ.get, VARIABLES[launcher])))
    if None in place.values():
        raise SystemExit(
            f'--launcher {launcher} expects {", ".join(VARIABLES[launcher])}, which it sets for every process; start '
            'with tools/dist_train.sh, dist_test.sh or slurm_train.sh.'
        )
    require_gpu(int(place['LOCAL_RANK']), torch.cuda.device_count())
    os.environ.update(place)
    if logger_hook.dump is dump:  # mmengine 0.10: all processes write the scores of a test into one file at once
        logger_hook.dump = master_only(dump)
    if launcher == 'slurm':
        job = int(os.environ.get('SLURM_JOB_ID', 0))
        os.environ.setdefault('MASTER_PORT', str(10000 + job % 20000))
    if get_device() != 'cpu':
        return
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        nodes = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        os.environ['MASTER_ADDR'] = subprocess.check_output(nodes, text=True).split()[0]
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    if cfg is not None:
        _no_devices(cfg)


def require_gpu(local_rank: int, gpus: int) -> None:
    """Raises SystemExit if a process of this machine has no GPU of its own; without any GPU all run on CPU."""
    if 0 < gpus <= local_rank:
        raise SystemExit(
            f'Process {local_rank} of this machine has no GPU: it sees {gpus}. Ask for at most {gpus} processes; under '
            'Slurm show every process all GPUs of its node (--gpus-per-node, not --gpus-per-task).'
        )


def _no_devices(cfg: Config) -> None:
    """What mmengine passes to DDP, the local rank as a device, DDP refuses on CPU."""
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False)
    )
    kind = type_class(wrapper, MODEL_WRAPPERS, 'MMDistributedDataParallel')
    if kind is not None and issubclass(kind, DistributedDataParallel):
        cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
