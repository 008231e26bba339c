# python tools/test.py configs/baselines/deit_s_base.py CHECKPOINT
# Table I (also II), DeiT-S base: 79.86 % top-1, 22.05 M parameters, 4.6 GFLOPs. Not run here.
# CHECKPOINT is the load_from of scalenet_deit_s_100e.py, unscaled as it is published.
_base_ = '../scalenet_deit_s_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=None)))
