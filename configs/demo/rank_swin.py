# The study's other source: a Swin whose last stage of three layers sees all 16 cells.
# python tools/train.py configs/demo/rank_swin.py
_base_ = ['../_base_/demo_rank.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ScaleNetSwin',
        arch=dict(embed_dims=32, depths=[1, 3], num_heads=[2, 4]),
        img_size=32,
        patch_size=4,
        in_channels=1,
        window_size=4,
        drop_path_rate=0.0,
        out_indices=(1,),
        scale=dict(times=1, stages=(1,), adjust=None),
    ),
    head=dict(type='RankHead', in_channels=64),
)
