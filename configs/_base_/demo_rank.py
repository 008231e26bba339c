# The rank task: 4 x 4 real digits, for every cell the number of smaller ones. Data, schedule, runtime.
# 128 scenes a step, drawn without end from 1,400 digits; validation: 10,000 fixed scenes of the other 397 digits.
_base_ = ['mmpretrain::_base_/default_runtime.py']
custom_imports = dict(imports=['scalenet_mm', 'scalenet_mm.experiments.study.rank'])
custom_hooks = [dict(type='AnyDialectHook'), dict(type='ReseedHook')]
randomness = dict(seed=0)

_loader = dict(batch_size=1, num_workers=0, collate_fn=dict(type='the_batch'))
train_dataloader = dict(
    **_loader,
    dataset=dict(type='RankBatches', digits='train', batches=1_000_000, batch=128, seed=(0, 0), blended=True),
    sampler=dict(type='InfiniteSampler', shuffle=False),
)
val_dataloader = dict(
    **_loader,
    dataset=dict(type='RankBatches', digits='val', batches=20, batch=500, seed=(0, 1)),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='RankMetric')
val_cfg = test_cfg = dict()

train_cfg = dict(by_epoch=False, max_iters=800, val_interval=800)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='ScaleNetOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05, fused=True),
    paramwise_cfg=dict(policy=dict(train='all'), norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=False, begin=50, end=800),
]
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=800, max_keep_ckpts=1),
)
