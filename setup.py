"""Packaging. `pip install -e .` works inside any OpenMMLab environment and changes nothing in it."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = ('configs', 'tools', 'model-index.yml')  # what `scalenet_mm::...` and openmim look up in .mim

# Neither torch nor any OpenMMLab distribution is required: both families provide the same import
# names, and an install must never pull the second family over the first.
EXTRAS = {
    'onedl': [
        'onedl-mmengine==0.10.12',
        'onedl-mmcv==2.3.6',
        'onedl-mmpretrain==1.3.6',
        'onedl-mmdetection==3.5.1',
        'onedl-mmsegmentation==1.4.2',
    ],
    'openmmlab': [
        'mmengine==0.10.7',
        'mmcv==2.1.0',
        'mmpretrain==1.2.0',
        'mmdet==3.3.0',
        'mmsegmentation==1.2.2',
        'ftfy',  # imported by mmseg 1.2.2 without being asked for
        'regex',
        'setuptools<82',
    ],
    'delta': ['huggingface_hub'],  # hf:// addresses
    'study': ['scikit-learn', 'scipy', 'matplotlib'],  # scalenet experiment study, scalenet experiment analyze
    'hosts': ['timm', 'transformers>=4.57'],  # networks for scale(), ScaleNetTimm, ScaleNetHF
    'lm': ['transformers>=4.57', 'accelerate', 'datasets', 'lm_eval'],  # scalenet lm-train, lm_eval.py
    'export': ['onnx', 'onnxscript', 'onnxruntime'],
    'tests': ['pytest', 'pytest-xdist', 'timm', 'scikit-learn', 'fvcore', 'matplotlib', 'tensorboard', 'peft'],
}


def version() -> str:
    """Reads the version without importing the package."""
    text = (ROOT / 'scalenet_mm' / 'version.py').read_text()
    return re.search(r"__version__ = '([^']+)'", text).group(1)


class BuildPy(build_py):
    """Adds `.mim` to the package: links in an editable install, copies in a wheel."""

    def run(self) -> None:
        super().run()
        editable = getattr(self, 'editable_mode', False)
        mim = (ROOT if editable else Path(self.build_lib)) / 'scalenet_mm' / '.mim'
        mim.mkdir(parents=True, exist_ok=True)
        for name in MIM:
            source, target = ROOT / name, mim / name
            if target.is_symlink() or target.is_file():
                target.unlink()
            elif target.is_dir():
                shutil.rmtree(target)
            if not source.exists():
                continue
            if editable:
                target.symlink_to(os.path.relpath(source, mim))
            elif source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(source, target)


setup(
    name='scalenet_mm',
    version=version(),
    description='ScaleNet: deeper vision transformers by sharing pretrained layers, for OpenMMLab',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['scalenet_mm', 'scalenet_mm.*']),
    package_data={'scalenet_mm.experiments.quickstart': ['sources/*']},
    install_requires=['safetensors>=0.4'],
    extras_require=EXTRAS,
    entry_points={'console_scripts': ['scalenet = scalenet_mm.commands.main:process']},
    cmdclass={'build_py': BuildPy},
    zip_safe=False,
)
