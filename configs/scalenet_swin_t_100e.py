# python tools/train.py configs/scalenet_swin_t_100e.py
# Table I: 81.20 % -> 81.43 % top-1, 29,246,818 parameters, 5.2 GFLOPs. Not run here.
_base_ = ['mmpretrain::_base_/models/swin_transformer/tiny_224.py', './_base_/scalenet_in1k_100e.py']
model = dict(
    backbone=dict(
        type='ScaleNetSwin',
        drop_path_rate=0.2,
        scale=dict(times=2, order='stack', stages=(3,), adjust=dict(type='ParallelAdapter', rank=16), adjust_on='all'),
    )
)
load_from = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth'
