# python tools/train.py configs/scalenet_swin_s_100e.py
# Table I: 83.22 % -> 83.34 % top-1, 51,302,002 parameters, 9.5 GFLOPs. Not run here.
_base_ = './scalenet_swin_t_100e.py'
model = dict(backbone=dict(arch='small', drop_path_rate=0.2))
load_from = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_small_patch4_window7_224.pth'
