"""The public data sets of the paper: where they come from, how they must lie, and whether all of it is there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

IMAGES = ('.jpg', '.jpeg', '.png')


@dataclass(frozen=True)
class PublicData:
    """One data set."""

    name: str
    variable: str  # of the environment, from which the configs read its folder
    folder: str  # where the configs look without it
    home: str  # its page, with the terms of use
    disk: str  # what it takes, as its publisher states the archives
    fetch: tuple[str, ...]  # commands, run in its folder
    layout: Mapping[str, str]  # path -> what lies there
    images: Mapping[str, int]  # path -> number of images, as published


PUBLIC = (
    PublicData(
        name='ImageNet-1K',
        variable='SCALENET_IMAGENET_ROOT',
        folder='data/imagenet',
        home='https://image-net.org/challenges/LSVRC/2012 (free account, terms of use)',
        disk='archives of 138 GB (train) and 6.3 GB (val), and as much again unpacked',
        fetch=(
            '# ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar come from the page above, after logging in',
            'mkdir -p train val meta && tar -xf ILSVRC2012_img_train.tar -C train && tar -xf ILSVRC2012_img_val.tar -C '
            'val',
            'for t in train/*.tar; do mkdir "${t%.tar}" && tar -xf "$t" -C "${t%.tar}" && rm "$t"; done',
            'curl -LO https://download.openmmlab.com/mmclassification/datasets/imagenet/meta/caffe_ilsvrc12.tar.gz',
            'tar -xzf caffe_ilsvrc12.tar.gz -C meta  # val.txt: the labels of the validation images',
        ),
        layout={
            'train/n01440764/*.JPEG': 'one folder a class, 1000 of them',
            'val/*.JPEG, meta/val.txt': 'validation images, their labels; or val/ with one folder a class and no meta/',
        },
        images={'train': 1_281_167, 'val': 50_000},
    ),
    PublicData(
        name='COCO 2017',
        variable='SCALENET_COCO_ROOT',
        folder='data/coco',
        home='https://cocodataset.org/#download',
        disk='archives of 18 GB (train), 1 GB (val) and 241 MB (annotations), and somewhat more unpacked',
        fetch=(
            'for f in zips/train2017 zips/val2017 annotations/annotations_trainval2017; do '
            'curl -LO http://images.cocodataset.org/$f.zip && unzip -q "${f#*/}.zip"; done',
        ),
        layout={
            'train2017/*.jpg, val2017/*.jpg': 'images',
            'annotations/instances_train2017.json, instances_val2017.json': 'boxes and masks of 80 classes',
        },
        images={'train2017': 118_287, 'val2017': 5_000},
    ),
    PublicData(
        name='ADE20K',
        variable='SCALENET_ADE_ROOT',
        folder='data/ade/ADEChallengeData2016',
        home='http://sceneparsing.csail.mit.edu (scene parsing benchmark, 150 classes)',
        disk='an archive of about 1 GB, and as much again unpacked',
        fetch=(
            'curl -LO http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
            'unzip -q ADEChallengeData2016.zip && mv ADEChallengeData2016/* . && rmdir ADEChallengeData2016',
        ),
        layout={
            'images/training/*.jpg, images/validation/*.jpg': 'images',
            'annotations/training/*.png, annotations/validation/*.png': 'label maps, 0 is ignored',
        },
        images={'images/training': 20_210, 'images/validation': 2_000},
    ),
)


def public_data(cfg: Config) -> PublicData | None:
    """The public data set that a config reads by its environment variable; None for data of another kind."""
    named = set(re.findall(r'\$(\w+)\s*:', getattr(cfg, 'text', None) or ''))
    return next((data for data in PUBLIC if data.variable in named), None)


def other_counts(data: PublicData, root: str | Path, trains: bool = True) -> Iterator[str]:
    """What of a data set is not there in the published number: a run on a part of it gives another result.

    Args:
        trains: whether the images for training are used too.
    """
    for folder, wanted in data.images.items():
        if 'train' in folder and not trains:
            continue
        names = (name for _, _, files in os.walk(Path(root, folder), followlinks=True) for name in files)
        found = sum(name.lower().endswith(IMAGES) for name in names)
        if found != wanted:
            yield f'{folder} holds {found:,} images; {data.name} has {wanted:,}.'
