# python tools/train.py configs/baselines/swin_t_interpolate_100e.py
# Table I, Swin-T Interpolate: 81.14 % top-1, 30.06 M parameters, 4.8 GFLOPs. Not run here.
# Added one by one until ScaleNet's size is reached (Sec. IV-A2): 1 independent layer.
# All is trained; the paper does not say what is.
_base_ = '../scalenet_swin_t_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, growth='interpolate', new_layers=1, stages=(2,))))
policy = dict(train='all')
