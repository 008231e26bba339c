# python tools/train.py configs/ablations/deit_t_lora_r16_100e.py
# Table II, DeiT-T LoRA r=16: 74.86 % top-1, 6.31 M parameters. Not run here.
_base_ = '../scalenet_deit_t_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=dict(type='LoRA', rank=16))))
