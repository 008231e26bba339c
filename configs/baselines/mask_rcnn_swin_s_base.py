# python tools/test.py configs/baselines/mask_rcnn_swin_s_base.py CHECKPOINT
# Table VIII, Swin-S base: box AP 48.2, box AP50 69.8, box AP75 52.8, 69.1 M parameters. Not run here.
# CHECKPOINT is the load_from of mask_rcnn_scalenet_swin_s_1x.py, unscaled as it is published.
_base_ = '../mask_rcnn_scalenet_swin_s_1x.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=None)))
