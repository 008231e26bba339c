# python tools/train.py configs/ablations/deit_b_drop_path_03_100e.py
# Fig. 6, DeiT-B drop path 0.3: the paper's curve has no figures; its text names the best value. Not run here.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(drop_path_rate=0.3))
