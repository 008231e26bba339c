# A DeiT classifier, every layer reused once, new layers interpolated, adapters on all instances.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ScaleNetDeiT',
        img_size=224,
        patch_size=16,
        scale=dict(
            times=2, order='interpolate', layers='all', adjust=dict(type='ParallelAdapter', rank=16), adjust_on='all'
        ),
    ),
    neck=None,
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    init_cfg=[
        dict(type='TruncNormal', layer='Linear', std=0.02),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ],
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
