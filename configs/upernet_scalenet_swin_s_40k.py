# python tools/train.py configs/upernet_scalenet_swin_s_40k.py
# Table IX: 47.72 -> 48.13 mIoU, 82,955,510 parameters. Not run here.
_base_ = './upernet_scalenet_swin_t_40k.py'
model = dict(backbone=dict(depths=[2, 2, 18, 2]))
load_from = 'https://download.openmmlab.com/mmsegmentation/v0.5/swin/upernet_swin_small_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K/upernet_swin_small_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_20210526_192015-ee2fff1c.pth'
