# python tools/train.py configs/mask_rcnn_scalenet_swin_s_1x.py
# Table VIII: 48.2 -> 48.4 box AP, 70,808,250 parameters. Not run here.
_base_ = './mask_rcnn_scalenet_swin_t_1x.py'
model = dict(backbone=dict(depths=[2, 2, 18, 2]))
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/swin/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco_20210903_104808-b92c91f1.pth'
