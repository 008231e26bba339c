# python tools/train.py configs/scalenet_deit_b_100e.py
# Table I: 81.80 % -> 82.53 % top-1, 89,553,640 parameters, 35.2 GFLOPs. Not run here.
_base_ = ['./_base_/scalenet_deit.py', './_base_/scalenet_in1k_100e.py']
model = dict(backbone=dict(arch='deit-base', drop_path_rate=0.5), head=dict(in_channels=768))
load_from = 'https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth'
