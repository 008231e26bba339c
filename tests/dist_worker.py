"""What each process of tests/test_distributed.py does: torchrun dist_worker.py JOBS.json OUT_DIR

A job is a dict: ``do`` names a function below, ``name`` the result, which goes to OUT_DIR/<name>.<rank>.pt.
"""

import json
import math
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import DEIT, perturb
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel, MMSeparateDistributedDataParallel
from mmengine.model.wrappers import MMFullyShardedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODEL_WRAPPERS, MODELS
from mmpretrain.models.peft.lora import LoRALinear
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.profiler import ProfilerActivity, profile
from toy_run import toy_config

from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.core.roles import TrainPolicy
from scalenet_mm.core.tying import require_tied
from scalenet_mm.engine import ScaleNetDistributedDataParallel, wrapper
from scalenet_mm.runner import launch
from scalenet_mm.runner.config import build_runner, trained_by

CONFIGS = Path(__file__).parents[1] / 'configs' / 'demo'
CONFIG = {'det': 'mask_rcnn_scalenet_swin_digits.py', 'seg': 'upernet_scalenet_swin_digits.py'}
LEAVES = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


def demo_config(task: str, data: dict, work_dir: Path, ours: bool, changes: dict) -> Config:
    """The demo config on small data: three iterations, a validation after the second."""
    cfg = Config.fromfile(CONFIGS / CONFIG[task])
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = data[task]
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    if task == 'det':
        cfg.val_evaluator.ann_file = f'{data[task]}/annotations/instances_val2017.json'
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3, val_interval=2)
    cfg.default_hooks.checkpoint = None
    cfg.param_scheduler = []
    cfg.optim_wrapper.clip_grad = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = cfg.load_from = None
    cfg.work_dir, cfg.launcher, cfg.experiment_name = str(work_dir), 'pytorch', work_dir.name
    cfg.merge_from_dict(changes)
    if not ours:  # what a user's config has that names the constructor alone
        cfg.optim_wrapper.paramwise_cfg.policy, cfg.policy = cfg.policy, None
    return cfg


class Recorder(Hook):
    """Moves the weights away from their start, where adapters pass no gradient on, and keeps what the run does."""

    def before_train(self, runner):
        model = perturb(runner.model.module, std=0.02)
        self.kept = dict(start=tensors(model), training={}, sent=[])
        self.names = {id(p): n for n, p in model.named_parameters()}
        runner.optim_wrapper.optimizer.register_step_pre_hook(self.keep_gradients)
        for name, leaf in model.named_modules():
            if isinstance(leaf, LEAVES):
                leaf.register_forward_hook(partial(self.keep_mode, model, name))

    def keep_mode(self, model, name, leaf, *_):
        if model.training:
            self.kept['training'].setdefault(name, set()).add(leaf.training)

    def keep_gradients(self, optimizer, *_):
        params = [p for g in optimizer.param_groups for p in g['params']]
        self.kept.setdefault('gradients', {self.names[id(p)]: p.grad.clone() for p in params})

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.kept.setdefault('batch', data_batch)
        self.profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self.profile.start()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        time.sleep(0.2)  # gloo's own thread ends the record of a message after those who wait for it go on
        self.profile.stop()
        sent = [e.input_shapes for e in self.profile.events() if e.name.startswith('gloo:')]
        self.kept['sent'].append(sum(math.prod(shape) for shapes in sent for shape in shapes))

    def after_train(self, runner):
        model = runner.model.module
        self.kept['end'] = tensors(model)
        self.kept['trainable'] = {n for n, p in model.named_parameters() if p.requires_grad}
        self.kept['wrapper'] = type(runner.model).__name__


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {n: t.detach().clone() for n, t in named}


def train(out: Path, name: str, rebuild: bool = True, **config) -> dict:
    """Three iterations with the real Runner; with ``rebuild=False``, without the new buckets of a plain DDP."""
    cfg = demo_config(work_dir=out / name, **config)
    launch.prepare('pytorch', cfg)
    runner = build_runner(cfg)
    recorder = Recorder()
    runner.register_hook(recorder, priority='VERY_LOW')
    whole = wrapper._rebuild
    if not rebuild:
        wrapper._rebuild = lambda ddp: None
    try:
        runner.train()
    except RuntimeError as e:
        recorder.profile.stop()
        return dict(error=str(e))
    finally:
        wrapper._rebuild = whole
    return dict(recorder.kept, model=cfg.model.to_dict(), policy=dict(vars(trained_by(cfg))))


class Net(nn.Module):
    """A small scaled classifier, the same in every process."""

    def __init__(self, policy: dict | None = None):
        super().__init__()
        torch.manual_seed(0)
        scaled = dict(type='ScaleNetDeiT', arch=DEIT, img_size=32, patch_size=8)
        self.backbone = MODELS.build(dict(scaled, out_type='avg_featmap', scale=dict(times=2)))
        self.head = nn.Linear(32, 5)
        perturb(self)
        if policy is not None:
            TrainPolicy.from_cfg(policy).apply(self)

    def forward(self, x):
        return self.head(self.backbone(x)[0])


def steps(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    # eps: a key's bias has no gradient but rounding, which Adam would blow up
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, eps=1e-4)
    losses = []
    for _ in range(3):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


def sharded(out: Path, name: str, policy: dict) -> dict:
    """The same three steps in one process, and sharded at the root over all."""
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    dist.broadcast(images, 0)
    alone, model = Net(policy), Net(policy)
    expected = steps(alone, images, labels)
    fully_shard(model, mesh=init_device_mesh('cpu', (dist.get_world_size(),)))
    require_tied(model)
    mine = slice(dist.get_rank() * 2, dist.get_rank() * 2 + 2)
    losses = torch.tensor(steps(model, images[mine], labels[mine]))
    dist.all_reduce(losses)
    require_tied(model)
    local = sum(p.to_local().numel() for p in model.parameters())
    return dict(
        expected=expected,
        losses=(losses / dist.get_world_size()).tolist(),
        alone=alone.state_dict(),
        gathered={k: getattr(t, 'full_tensor', lambda t=t: t)() for k, t in model.state_dict().items()},
        share=local / sum(p.numel() for p in alone.parameters()),
    )


def added(out: Path, name: str) -> dict:
    """Three steps of LoRA put on the instances, moved as a Trainer does: in one process, and in all."""
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    dist.broadcast(images, 0)
    alone, model = Net(), Net()
    for net in (alone, model):
        torch.manual_seed(1)
        for block in net.backbone.layers:
            block.attn.qkv = LoRALinear(block.attn.qkv, rank=2)
        perturb(net, seed=1, std=0.02)
        TrainPolicy('adjustments', ('backbone.layers.*.attn.qkv.lora_*',)).apply(net)
    start = {n: t.clone() for n, t in model.state_dict().items()}
    expected = steps(alone, images, labels)
    model.to('cpu').double().float()
    ddp = nn.parallel.DistributedDataParallel(model)
    mine = slice(dist.get_rank() * 2, dist.get_rank() * 2 + 2)
    losses = torch.tensor(steps(ddp, images[mine], labels[mine]))
    dist.all_reduce(losses)
    return dict(
        expected=expected,
        losses=(losses / dist.get_world_size()).tolist(),
        start=start,
        alone=alone.state_dict(),
        end=model.state_dict(),
    )


@MODEL_WRAPPERS.register_module()
class OwnWrapper(MMDistributedDataParallel):
    """A wrapper of the user's."""


def verdicts(out: Path, name: str) -> dict:
    """What the constructor says of every way to wrap: the error, or None."""
    mesh, group = init_device_mesh('cpu', (2,)), dist.new_group([0, 1])
    policy = dict(also=['head'])

    def hooked():
        ddp = MMDistributedDataParallel(Net())
        ddp.register_comm_hook(None, lambda state, bucket: None)
        return ddp

    def root(net):
        fully_shard(net, mesh=mesh)
        return net

    def blocks():
        net = Net(policy)
        for block in net.backbone.layers:
            fully_shard(block, mesh=mesh)
        return root(net)

    ways = {
        'plain': lambda: MMDistributedDataParallel(Net()),
        'torch DDP': lambda: nn.parallel.DistributedDataParallel(Net()),
        'ours': lambda: ScaleNetDistributedDataParallel(Net(), policy=policy),
        'ours, another policy': lambda: ScaleNetDistributedDataParallel(Net()),
        'own': lambda: OwnWrapper(Net()),
        'own, frozen before': lambda: OwnWrapper(Net(policy)),
        'hooked': hooked,
        'own group': lambda: MMDistributedDataParallel(Net(), process_group=group),
        'separate': lambda: MMSeparateDistributedDataParallel(Net()),
        'FSDP1': lambda: MMFullyShardedDataParallel(Net(policy), device_id=torch.device('cpu')),
        'FSDP2': lambda: root(Net()),
        'FSDP2, frozen before': lambda: root(Net(policy)),
        'FSDP2 of blocks': blocks,
    }
    cfg = dict(
        constructor='ScaleNetOptimWrapperConstructor',
        optimizer=dict(type='SGD', lr=0.1),
        paramwise_cfg=dict(policy=policy),
    )
    said = {}
    for way, make in ways.items():
        try:
            said[way] = build_optim_wrapper(make(), dict(cfg)) and None
        except RuntimeError as e:
            said[way] = str(e)
    return said


def options(out: Path, name: str) -> dict:
    """DDP's own record of its options before and after the constructor has built it anew."""
    chosen = dict(
        find_unused_parameters=True,
        broadcast_buffers=False,
        bucket_cap_mb=3,
        gradient_as_bucket_view=True,
        static_graph=True,
        device_ids=None,
    )
    ddp = MMDistributedDataParallel(Net(), **chosen)
    before, names = dict(ddp._get_ddp_logging_data()), vars(ddp).keys() - {'reducer', 'logger'}
    kept = {k: vars(ddp)[k] for k in names if isinstance(vars(ddp)[k], (bool, int, type(None)))}
    wrapper.freeze(ddp, TrainPolicy())
    trainable = [p.numel() for p in ddp.parameters() if p.requires_grad]
    return dict(
        before=before,
        after=dict(ddp._get_ddp_logging_data()),
        attributes_before=kept,
        attributes_after={k: vars(ddp)[k] for k in kept},
        trainable=trainable,
    )


def positions(out: Path, name: str) -> str:
    """What a resumed run says in each process, where each has a work dir of its own and the first one wrote."""
    for resume in (False, True):
        cfg = toy_config(out / f'{name} of {dist.get_rank()}')
        cfg.launcher, cfg.resume, cfg.train_cfg.max_epochs = 'pytorch', resume, 1 + resume
        cfg.policy = cfg.optim_wrapper.paramwise_cfg.policy
        try:
            build_runner(cfg).train()
        except CheckpointError as error:
            return str(error)
    return 'trained'


def main(jobs: list[dict], out: Path) -> None:
    launch.prepare('pytorch')
    for job in jobs:
        result = globals()[job.pop('do')](out=out, **job)
        torch.save(result, out / f'{job["name"]}.{dist.get_rank()}.pt')


if __name__ == '__main__':
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
