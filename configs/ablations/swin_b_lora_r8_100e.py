# python tools/train.py configs/ablations/swin_b_lora_r8_100e.py
# Table II, Swin-B LoRA r=8: 83.26 % top-1, 89.31 M parameters. Not run here.
_base_ = '../scalenet_swin_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=dict(type='LoRA', rank=8))))
