# python tools/train.py configs/hosts/scalenet_dinov2_s_100e.py
# Not in the paper: DINOv2 ViT-S/14 of timm at 224 x 224, its class token into a new classifier. Not run here.
_base_ = '../_base_/scalenet_in1k_100e.py'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ScaleNetTimm',
        model_name='vit_small_patch14_dinov2',
        img_size=224,
        out_type='cls_token',
        drop_path_rate=0.2,  # as DeiT-S
        scale=dict(
            times=2, order='interpolate', layers='all', adjust=dict(type='ParallelAdapter', rank=16), adjust_on='all'
        ),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth',
        ),
    ),
    neck=None,
    head=dict(
        type='LinearClsHead',
        in_channels=384,
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
# DINOv2 is pretrained without labels, so the classifier is trained besides.
policy = dict(train='increments', also=['head'])
