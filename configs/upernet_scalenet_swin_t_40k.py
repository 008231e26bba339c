# python tools/train.py configs/upernet_scalenet_swin_t_40k.py
# Table IX: 44.41 -> 44.69 mIoU, 60,900,326 parameters. Not run here. ADE20K is looked for in $SCALENET_ADE_ROOT
# (data/ade/ADEChallengeData2016).
_base_ = './_base_/scalenet_ade20k_40k.py'
model = dict(
    backbone=dict(
        type='ScaleNetSwin',
        init_cfg=None,  # load_from holds the whole segmentor
        scale=dict(times=2, order='stack', stages=(3,), adjust=dict(type='ParallelAdapter', rank=16), adjust_on='all'),
    )
)
# Adapters and norms of the backbone, and the last layer of both heads. The heads whole: also=['decode_head',
# 'auxiliary_head']
policy = dict(train='increments', also=['decode_head.conv_seg', 'auxiliary_head.conv_seg'])
load_from = 'https://download.openmmlab.com/mmsegmentation/v0.5/swin/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_20210531_112542-e380ad3e.pth'
