# python tools/test.py configs/baselines/mask_rcnn_swin_t_base.py CHECKPOINT
# Table VIII, Swin-T base: box AP 46.0, box AP50 68.1, box AP75 50.6, 47.8 M parameters. Not run here.
# CHECKPOINT is the load_from of mask_rcnn_scalenet_swin_t_1x.py, unscaled as it is published.
_base_ = '../mask_rcnn_scalenet_swin_t_1x.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=None)))
