# python tools/train.py configs/ablations/swin_s_lora_r8_100e.py
# Table II, Swin-S LoRA r=8: 82.93 % top-1, 50.76 M parameters. Not run here.
_base_ = '../scalenet_swin_s_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=dict(type='LoRA', rank=8))))
