# python tools/test.py configs/baselines/deit_t_base.py CHECKPOINT
# Table I (also II), DeiT-T base: 72.16 % top-1, 5.72 M parameters, 1.3 GFLOPs. Not run here.
# CHECKPOINT is the load_from of scalenet_deit_t_100e.py, unscaled as it is published.
_base_ = '../scalenet_deit_t_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=None)))
