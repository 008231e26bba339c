# python tools/test.py configs/baselines/deit_b_base.py CHECKPOINT
# Table I (also II, III, IV, V, VI), DeiT-B base: 81.80 % top-1, 86.57 M parameters, 17.6 GFLOPs. Not run here.
# CHECKPOINT is the load_from of scalenet_deit_b_100e.py, unscaled as it is published.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=None)))
