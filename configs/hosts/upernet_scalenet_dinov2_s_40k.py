# python tools/train.py configs/hosts/upernet_scalenet_dinov2_s_40k.py
# Not in the paper: DINOv2 ViT-S/14 of timm, four of its layers into a pyramid as in mmseg's BEiT configs. Not run here.
_base_ = '../_base_/scalenet_ade20k_40k.py'
crop_size = (518, 518)  # 37 x 37 patches, the size of its pretraining
model = dict(
    data_preprocessor=dict(size=crop_size, test_cfg=dict(size_divisor=14)),
    backbone=dict(
        _delete_=True,
        type='ScaleNetTimm',
        model_name='vit_small_patch14_dinov2',
        img_size=518,
        out_indices=(5, 11, 17, 23),  # of 24 scaled layers: the last use of layers 3, 6, 9, 12
        drop_path_rate=0.1,
        scale=dict(
            times=2, order='interpolate', layers='all', adjust=dict(type='ParallelAdapter', rank=16), adjust_on='all'
        ),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth',
        ),
    ),
    neck=dict(type='Feature2Pyramid', embed_dim=384, rescales=[4, 2, 1, 0.5]),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(2072, 518), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
# There is no pretrained segmentor, so all but the backbone's tied layers is trained.
policy = dict(train='increments', also=['neck', 'decode_head', 'auxiliary_head'])
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
