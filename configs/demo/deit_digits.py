# The demo's "pretrained" model: a small DeiT trained from scratch on digit sums. (The quickstart: deit_micro_digits.)
# python tools/train.py configs/demo/deit_digits.py   (data: scalenet experiment demo-data data/demo)
_base_ = ['../_base_/demo_cls.py']
model = dict(
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=96, num_layers=4, num_heads=4, feedforward_channels=384),
        img_size=32,
        patch_size=8,
        out_type='avg_featmap',
    ),
    head=dict(in_channels=96),
)
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=4)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05), clip_grad=dict(max_norm=5.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, convert_to_iter_based=True),
]
