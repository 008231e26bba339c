# python tools/test.py configs/baselines/swin_t_base.py CHECKPOINT
# Table I (also II), Swin-T base: 81.20 % top-1, 28.29 M parameters, 4.5 GFLOPs. Not run here.
# CHECKPOINT is the load_from of scalenet_swin_t_100e.py, unscaled as it is published.
_base_ = '../scalenet_swin_t_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=None)))
