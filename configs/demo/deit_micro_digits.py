# The quickstart's source: a DeiT of one layer for digit sums, which ask for more depth than it has.
# scalenet experiment make-sources cls
_base_ = ['../_base_/demo_cls.py']
model = dict(
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=1, num_heads=4, feedforward_channels=256),
        img_size=32,
        patch_size=8,
        out_type='avg_featmap',
    ),
    head=dict(in_channels=64),
)
train_cfg = dict(by_epoch=True, max_epochs=16, val_interval=4)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=True, convert_to_iter_based=True),
]
