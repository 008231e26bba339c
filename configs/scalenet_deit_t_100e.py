# python tools/train.py configs/scalenet_deit_t_100e.py
# Table I: 72.16 % -> 76.46 % top-1, 6,463,912 parameters, 2.6 GFLOPs. Not run here.
_base_ = ['./_base_/scalenet_deit.py', './_base_/scalenet_in1k_100e.py']
model = dict(backbone=dict(arch='deit-tiny', drop_path_rate=0.0), head=dict(in_channels=192))
load_from = 'https://dl.fbaipublicfiles.com/deit/deit_tiny_patch16_224-a1311bcf.pth'

# DeiT-T and DeiT-S are trained whole (Sec. IV-A1)
policy = dict(train='all')
