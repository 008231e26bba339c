# The "pretrained" segmentor of the quickstart: a small UPerNet Swin trained from scratch on digit scenes.
# python tools/train.py configs/demo/upernet_swin_digits.py   (data: scalenet experiment demo-data data/demo)
_base_ = ['../_base_/demo_seg.py']
