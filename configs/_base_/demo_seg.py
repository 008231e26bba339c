# Digit scenes in ADE20K layout (docs/demo_data.md): 96 x 96, background and ten digits, one label a pixel.
_base_ = ['mmseg::_base_/models/upernet_swin.py', 'mmseg::_base_/default_runtime.py']
custom_imports = dict(imports=['scalenet_mm'])
runner_type = 'ScaleNetRunner'  # adds exact resume, the check of load_from, and the policy
randomness = dict(seed=0)

_norm = dict(type='BN', requires_grad=True)
# most pixels are background
_loss = dict(class_weight=[0.1] + [1.0] * 10)
model = dict(
    data_preprocessor=dict(size=(96, 96), mean=[125.0] * 3, std=[67.0] * 3),
    backbone=dict(
        embed_dims=24,
        depths=[1, 1, 1],
        num_heads=[2, 4, 8],
        strides=(4, 2, 2),
        window_size=6,
        drop_path_rate=0.0,
        out_indices=(0, 1, 2),
    ),
    decode_head=dict(
        in_channels=[24, 48, 96],
        in_index=[0, 1, 2],
        pool_scales=(1, 2, 3),
        channels=32,
        num_classes=11,
        norm_cfg=_norm,
        loss_decode=_loss,
    ),
    auxiliary_head=dict(in_channels=48, in_index=1, channels=16, num_classes=11, norm_cfg=_norm, loss_decode=_loss),
)

_metainfo = dict(classes=['background', *[str(i) for i in range(10)]])
_loader = dict(batch_size=16, num_workers=1, persistent_workers=True)
_data = dict(
    type='BaseSegDataset',
    data_root='data/demo/ade',
    img_suffix='.jpg',
    seg_map_suffix='.png',
    reduce_zero_label=True,
    metainfo=_metainfo,
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', reduce_zero_label=True),
        dict(type='PackSegInputs'),
    ],
)
train_dataloader = dict(
    **_loader,
    dataset=dict(**_data, data_prefix=dict(img_path='images/training', seg_map_path='annotations/training')),
    sampler=dict(type='InfiniteSampler', shuffle=True),
)
val_dataloader = dict(
    **_loader,
    dataset=dict(**_data, data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation')),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
train_cfg = dict(type='IterBasedTrainLoop', max_iters=3000, val_interval=500)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=2.5e-3, weight_decay=0.05), clip_grad=dict(max_norm=5.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
