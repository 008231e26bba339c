# The "pretrained" detector of the quickstart: a small Mask R-CNN Swin trained from scratch on digit scenes.
# python tools/train.py configs/demo/mask_rcnn_swin_digits.py   (data: scalenet experiment demo-data data/demo)
_base_ = ['../_base_/demo_det.py']
