# First of the bases: importing scalenet_mm makes `mmseg::` resolve in either OpenMMLab family, in anyone's
# tools/train.py.
custom_imports = dict(imports=['scalenet_mm'])
__import__('scalenet_mm')  # an import statement would make mmengine read this as a lazy config
