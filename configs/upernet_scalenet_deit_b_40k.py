# python tools/train.py configs/upernet_scalenet_deit_b_40k.py
# Not in the paper: DeiT-B as a segmentor's backbone, as in mmseg's vit_deit-b16-ln_mln_upernet. Not run here.
_base_ = './_base_/scalenet_ade20k_40k.py'
model = dict(
    data_preprocessor=dict(test_cfg=dict(size_divisor=32)),  # test images have any size
    backbone=dict(
        _delete_=True,
        type='ScaleNetDeiT',
        arch='deit-base',
        img_size=512,
        out_type='featmap',
        out_indices=(5, 11, 17, 23),  # of 24 scaled layers: the last use of layers 3, 6, 9, 12
        drop_path_rate=0.1,
        scale=dict(
            times=2, order='interpolate', layers='all', adjust=dict(type='ParallelAdapter', rank=16), adjust_on='all'
        ),
        init_cfg=dict(
            type='Pretrained', checkpoint='https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth'
        ),
    ),
    neck=dict(type='MultiLevelNeck', in_channels=[768, 768, 768, 768], out_channels=768, scales=[4, 2, 1, 0.5]),
    decode_head=dict(in_channels=[768, 768, 768, 768]),
    auxiliary_head=dict(in_channels=768, in_index=3),
)
# There is no pretrained segmentor, so all but the backbone's tied layers is trained.
policy = dict(train='increments', also=['neck', 'decode_head', 'auxiliary_head'])
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
