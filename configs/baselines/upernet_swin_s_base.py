# python tools/test.py configs/baselines/upernet_swin_s_base.py CHECKPOINT
# Table IX, Swin-S base: mIoU 47.72, 81.3 M parameters. Not run here.
# CHECKPOINT is the load_from of upernet_scalenet_swin_s_40k.py, unscaled as it is published.
_base_ = '../upernet_scalenet_swin_s_40k.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=None)))
