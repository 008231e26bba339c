# python tools/train.py configs/scalenet_deit_s_100e.py
# Table I: 79.86 % -> 81.13 % top-1, 23,543,656 parameters, 9.2 GFLOPs. Not run here.
_base_ = ['./_base_/scalenet_deit.py', './_base_/scalenet_in1k_100e.py']
model = dict(
    backbone=dict(arch='deit-small', drop_path_rate=0.2),
    head=dict(in_channels=384),
)
load_from = 'https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth'

# DeiT-T and DeiT-S are trained whole (Sec. IV-A1)
policy = dict(train='all')
model_wrapper_cfg = dict(policy=policy)
optim_wrapper = dict(paramwise_cfg=dict(policy=policy))
