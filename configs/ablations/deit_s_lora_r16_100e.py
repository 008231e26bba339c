# python tools/train.py configs/ablations/deit_s_lora_r16_100e.py
# Table II, DeiT-S LoRA r=16: 80.02 % top-1, 23.23 M parameters. Not run here.
_base_ = '../scalenet_deit_s_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=dict(type='LoRA', rank=16))))
