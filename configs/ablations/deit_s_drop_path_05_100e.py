# python tools/train.py configs/ablations/deit_s_drop_path_05_100e.py
# Fig. 6, DeiT-S drop path 0.5: the paper's curve has no figures; its text names the best value. Not run here.
_base_ = '../scalenet_deit_s_100e.py'
model = dict(backbone=dict(drop_path_rate=0.5))
