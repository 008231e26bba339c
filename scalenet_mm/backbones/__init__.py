from .deit import ScaleNetDeiT
from .library import LiveBackbone
from .simple_fpn import SimpleFeaturePyramid
from .swin import ScaleNetSwin
from .timm_hf import ScaleNetHF, ScaleNetTimm

__all__ = ['LiveBackbone', 'ScaleNetDeiT', 'ScaleNetHF', 'ScaleNetSwin', 'ScaleNetTimm', 'SimpleFeaturePyramid']
