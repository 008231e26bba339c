# python tools/train.py configs/ablations/deit_b_lora_r16_100e.py
# Table II, DeiT-B LoRA r=16: 82.19 % top-1, 88.93 M parameters. Not run here.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=dict(type='LoRA', rank=16))))
