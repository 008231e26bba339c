# python tools/test.py configs/baselines/swin_b_base.py CHECKPOINT
# Table I (also II, III, IV, V), Swin-B base: 83.50 % top-1, 87.77 M parameters, 15.5 GFLOPs. Not run here.
# CHECKPOINT is the load_from of scalenet_swin_b_100e.py, unscaled as it is published.
_base_ = '../scalenet_swin_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=None)))
