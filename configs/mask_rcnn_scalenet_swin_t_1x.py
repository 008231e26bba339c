# python tools/train.py configs/mask_rcnn_scalenet_swin_t_1x.py
# Table VIII: 46.0 -> 46.7 box AP, 48,753,066 parameters. Not run here. COCO 2017 is looked for in $SCALENET_COCO_ROOT
# (data/coco).
_base_ = './_base_/scalenet_coco_1x.py'
model = dict(
    backbone=dict(
        type='ScaleNetSwin',
        init_cfg=None,  # load_from holds the whole detector
        scale=dict(times=2, order='stack', stages=(3,), adjust=dict(type='ParallelAdapter', rank=16), adjust_on='all'),
    )
)
# Adapters and norms of the backbone, and of the head these two layers. To train more, name it here:
# 'roi_head.mask_head', 'neck', ...
policy = dict(train='increments', also=['roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg'])
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/swin/mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco/mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco_20210908_165006-90a4008c.pth'
