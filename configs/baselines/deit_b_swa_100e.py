# python tools/train.py configs/baselines/deit_b_swa_100e.py
# Table I, DeiT-B SWA: 82.34 % top-1, 93.66 M parameters, 19.0 GFLOPs. Not run here.
# Added one by one until ScaleNet's size is reached (Sec. IV-A2): 1 independent layer.
# All is trained; the paper does not say what is.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, growth='swa', new_layers=1)))
policy = dict(train='all')
