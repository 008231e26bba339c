# python tools/train.py configs/mask_rcnn_scalenet_deit_b_1x.py
# Not in the paper: DeiT-B as a detector's backbone, with the simple feature pyramid of ViTDet. Not run here.
_base_ = './_base_/scalenet_coco_1x.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='ScaleNetDeiT',
        arch='deit-base',
        img_size=224,  # of the checkpoint; position embeddings are resized to every image's grid
        out_type='featmap',
        drop_path_rate=0.1,  # ViTDet's
        scale=dict(
            times=2, order='interpolate', layers='all', adjust=dict(type='ParallelAdapter', rank=16), adjust_on='all'
        ),
        init_cfg=dict(
            type='Pretrained', checkpoint='https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth'
        ),
    ),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=768, out_channels=256),
)
# There is no pretrained detector, so all but the backbone's tied layers is trained.
policy = dict(train='increments', also=['neck', 'rpn_head', 'roi_head'])
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
