# python tools/train.py configs/baselines/deit_s_swa_100e.py
# Table I, DeiT-S SWA: not legible in the source text. Not run here.
# Added one by one until ScaleNet's size is reached (Sec. IV-A2): 1 independent layer.
# All is trained; the paper does not say what is.
_base_ = '../scalenet_deit_s_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, growth='swa', new_layers=1)))
