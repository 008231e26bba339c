# The study's source: a DeiT of three layers on the rank task.
# python tools/train.py configs/demo/rank_deit.py
_base_ = ['../_base_/demo_rank.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ScaleNetDeiT',
        arch=dict(embed_dims=64, num_layers=3, num_heads=4, feedforward_channels=256),
        img_size=32,
        patch_size=8,
        in_channels=1,
        with_cls_token=False,
        out_type='featmap',
        scale=dict(times=1, adjust=None),
    ),
    head=dict(type='RankHead', in_channels=64),
)
