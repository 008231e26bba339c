# python tools/train.py configs/scalenet_swin_s_100e.py
# Table I: 83.22 % -> 83.34 % top-1, 51,302,002 parameters, 9.5 GFLOPs. Not run here.
_base_ = [
    'mmpretrain::_base_/models/swin_transformer/small_224.py',
    './_base_/scalenet_in1k_100e.py',
]
model = dict(
    backbone=dict(
        type='ScaleNetSwin',
        drop_path_rate=0.2,
        scale=dict(
            times=2,
            order='stack',
            stages=(3,),
            adjust=dict(type='ParallelAdapter', rank=16),
            adjust_on='all',
        ),
    ),
)
load_from = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_small_patch4_window7_224.pth'
