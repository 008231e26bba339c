# python tools/test.py configs/baselines/swin_s_base.py CHECKPOINT
# Table I (also II), Swin-S base: 83.22 % top-1, 49.61 M parameters, 8.8 GFLOPs. Not run here.
# CHECKPOINT is the load_from of scalenet_swin_s_100e.py, unscaled as it is published.
_base_ = '../scalenet_swin_s_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=None)))
