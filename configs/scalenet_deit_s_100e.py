# python tools/train.py configs/scalenet_deit_s_100e.py
# Table I: 79.86 % -> 81.13 % top-1, 23,543,656 parameters, 9.2 GFLOPs. Not run here.
_base_ = './scalenet_deit_t_100e.py'
model = dict(backbone=dict(arch='deit-small', drop_path_rate=0.2), head=dict(in_channels=384))
load_from = 'https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth'
