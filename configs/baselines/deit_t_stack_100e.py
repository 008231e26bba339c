# python tools/train.py configs/baselines/deit_t_stack_100e.py
# Table I, DeiT-T Stack: 75.37 % top-1, 6.61 M parameters, 1.5 GFLOPs. Not run here.
# Added one by one until ScaleNet's size is reached (Sec. IV-A2): 2 independent layers.
# All is trained; the paper does not say what is.
_base_ = '../scalenet_deit_t_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, growth='stack', new_layers=2)))
