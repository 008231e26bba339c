# python tools/train.py configs/baselines/swin_b_random_100e.py
# Table I, Swin-B Random: 83.57 % top-1, 90.92 M parameters, 16.1 GFLOPs. Not run here.
# Added one by one until ScaleNet's size is reached (Sec. IV-A2): 1 independent layer.
# All is trained; the paper does not say what is.
_base_ = '../scalenet_swin_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, growth='random', new_layers=1, stages=(2,))))
policy = dict(train='all')
