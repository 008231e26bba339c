# python tools/train.py configs/scalenet_swin_b_100e.py
# Table I: 83.50 % -> 83.69 % top-1, 90,029,216 parameters, 16.7 GFLOPs. Not run here.
_base_ = './scalenet_swin_t_100e.py'
model = dict(backbone=dict(arch='base', drop_path_rate=0.5), head=dict(in_channels=1024))
load_from = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_base_patch4_window7_224.pth'
