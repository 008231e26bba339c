# python tools/train.py configs/baselines/swin_s_interpolate_100e.py
# Table I, Swin-S Interpolate: 83.05 % top-1, 51.38 M parameters, 9.2 GFLOPs. Not run here.
# Added one by one until ScaleNet's size is reached (Sec. IV-A2): 1 independent layer.
# All is trained; the paper does not say what is.
_base_ = '../scalenet_swin_s_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, growth='interpolate', new_layers=1, stages=(2,))))
policy = dict(train='all')
