# python tools/train.py configs/ablations/swin_t_lora_r8_100e.py
# Table II, Swin-T LoRA r=8: 80.95 % top-1, 28.85 M parameters. Not run here.
_base_ = '../scalenet_swin_t_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=dict(type='LoRA', rank=8))))
