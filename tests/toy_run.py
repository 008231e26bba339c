"""A scaled network that trains in a second: a real Runner run, for tests of what a run leaves on the disk."""

import os
import uuid
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

BACKBONE = dict(
    arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
    img_size=16,
    patch_size=8,
    out_type='avg_featmap',
)
SCALED = dict(type='ScaleNetDeiT', drop_path_rate=0.2, **BACKBONE)
SOURCE = dict(type='mmpretrain.VisionTransformer', **BACKBONE)


@MODELS.register_module()
class ToyClassifier(BaseModel):
    """Backbone, BatchNorm, classifier; inputs (B, 3, 16, 16), labels (B,)."""

    def __init__(self, backbone: dict, init_cfg: dict | None = None):
        super().__init__(init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.bn = nn.BatchNorm1d(16)
        self.fc = nn.Linear(16, 3)

    def forward(self, inputs, labels, mode='tensor'):
        scores = self.fc(self.bn(self.backbone(inputs)[-1]))
        if mode == 'loss':
            return dict(loss=F.cross_entropy(scores, labels))
        return list(zip(scores, labels)) if mode == 'predict' else scores


@DATASETS.register_module()
class ToyImages(Dataset):
    metainfo = dict(classes=('a', 'b', 'c'), palette=[[0, 0, 0], [9, 9, 9], [255, 0, 0]])

    def __len__(self):
        return 12

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(int(index))
        return dict(inputs=torch.randn(3, 16, 16, generator=generator), labels=index % 3)


@DATASETS.register_module()
class ToyImagesThatEnd(ToyImages):
    def __getitem__(self, index):
        raise KeyboardInterrupt


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Goes up by one with every validation, or falls after the one numbered ``peak``: a best checkpoint comes and
    goes.
    """

    def __init__(self, peak: int = 99):
        super().__init__()
        self.peak, self.calls = peak, 0

    def process(self, data_batch, data_samples):
        self.results += [float(score.max()) for score, _ in data_samples]

    def compute_metrics(self, results):
        self.calls += 1
        return dict(acc=min(self.calls, 2 * self.peak - self.calls), sum=sum(results))


def toy_config(work_dir, base=None, loop='epochs', policy=None, hooks=(), **checkpoint) -> Config:
    """Four epochs of four iterations, a checkpoint and a validation after each (16 iterations, every 4)."""
    by_epoch = loop == 'epochs'
    loader = dict(batch_size=3, num_workers=0, dataset=dict(type='ToyImages'), collate_fn=dict(type='default_collate'))
    policy = dict(policy or dict(train='increments', also=['fc']))
    return Config(
        dict(
            custom_imports=dict(imports=['scalenet_mm', 'toy_run']),
            default_scope='mmengine',
            work_dir=str(work_dir),
            experiment_name=uuid.uuid4().hex,  # runs of the same second would share a MessageHub
            model=dict(type='ToyClassifier', backbone=SCALED),
            train_dataloader=dict(
                **loader, sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True)
            ),
            val_dataloader=dict(**loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            val_evaluator=dict(type='ToyMetric'),
            val_cfg=dict(),
            train_cfg=dict(by_epoch=True, max_epochs=4, val_interval=1)
            if by_epoch
            else dict(type='IterBasedTrainLoop', max_iters=16, val_interval=4),
            optim_wrapper=dict(
                constructor='ScaleNetOptimWrapperConstructor',
                optimizer=dict(type='AdamW', lr=1e-2),
                paramwise_cfg=dict(policy=policy),
            ),
            param_scheduler=[dict(type='CosineAnnealingLR', T_max=16, by_epoch=False)],
            randomness=dict(seed=0),
            custom_hooks=[dict(type='ReseedHook'), *hooks],
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1 if by_epoch else 4, by_epoch=by_epoch, **checkpoint)
            ),
            load_from=str(base) if base else None,
        )
    )


def write_base(path: Path, seed: int = 0, head: bool = True) -> Path:
    """The pretrained, unscaled network, with weights that are nowhere trivial."""
    torch.manual_seed(seed)
    model = MODELS.build(dict(type='ToyClassifier', backbone=SOURCE))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor + 0.2 * torch.rand_like(tensor))
    state = {k: v for k, v in model.state_dict().items() if head or k.startswith('backbone.')}
    torch.save(dict(state_dict=state), path)
    return path


def kill_at(call: str, nth: int) -> None:
    """Makes the process die by SIGKILL at the n-th call of ``os.fsync`` or ``os.remove``, half of a file written."""
    import signal
    import stat

    real, calls = getattr(os, call), [0]

    def dying(target, *args, **kwargs):
        if call == 'fsync' and not stat.S_ISREG(os.fstat(target).st_mode):
            return real(target)
        calls[0] += 1
        if calls[0] == nth:
            if call == 'fsync':
                os.ftruncate(target, os.fstat(target).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(target, *args, **kwargs)

    setattr(os, call, dying)


if os.environ.get('TOY_KILL'):
    kill_at(os.environ['TOY_KILL'].split(':')[0], int(os.environ['TOY_KILL'].split(':')[1]))
