"""A training step and a prediction of the libraries' models on mmcv's operators of one kind, for test_mmcv_ops.py.

python tests/mmcv_ops_worker.py {compiled,supplied} OUT.pth [NAME ...]
"""

import runpy
import sys
from pathlib import Path

FINDER = Path(__file__).parents[1] / 'scalenet_mm' / 'mmcv_finder.py'
finder = runpy.run_path(str(FINDER))['MmcvOpsFinder']
if sys.argv[1] == 'supplied':
    sys.meta_path.insert(0, finder)

import time  # noqa: E402

import mmcv._ext  # noqa: E402
import mmcv.ops  # noqa: E402
import torch  # noqa: E402
from mmengine.registry import MODELS, DefaultScope  # noqa: E402

import scalenet_mm  # noqa: E402, F401
from scalenet_mm.compat import quiet, read_config  # noqa: E402

DETECTORS = {
    'Mask R-CNN': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'Cascade Mask R-CNN': 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'RetinaNet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'Faster R-CNN with DCN': 'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
    'Faster R-CNN with DCN v2': 'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',
    'Faster R-CNN with CARAFE': 'carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py',
    'Faster R-CNN with soft NMS': 'faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py',
    'Guided anchoring': 'guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco.py',
    'Deformable DETR': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'DINO': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'Mask2Former': 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
}
SEGMENTORS = {
    'UPerNet': 'upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
    'PointRend': 'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
    'PSANet': 'psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512.py',
}
SIZE = (96, 128)


class WithoutTies:
    """The operators, but NMS is told places in a stable order for scores: of equal ones mmcv's order is any."""

    def __getattr__(self, name: str):
        return getattr(mmcv._ext, name)

    @staticmethod
    def nms(boxes, scores, iou_threshold, offset):
        places = torch.empty_like(scores)
        places[scores.argsort(descending=True, stable=True)] = torch.arange(len(scores), 0, -1, dtype=scores.dtype)
        return mmcv._ext.nms(boxes, places, iou_threshold=iou_threshold, offset=offset)


sys.modules['mmcv.ops.nms'].ext_module = WithoutTies()


def walk_dicts(node):
    """Every dict below a config."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict):
            yield value
        if isinstance(value, (dict, list, tuple)):
            yield from walk_dicts(value)


def detection():
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    boxes = torch.tensor([[10.0, 12, 60, 70], [40, 20, 110, 90], [5, 5, 30, 28]])
    masks = torch.zeros(3, *SIZE, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    sample = DetDataSample(
        metainfo=dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE, scale_factor=(1.0, 1.0), batch_input_shape=SIZE)
    )
    masks = BitmapMasks(masks.numpy(), *SIZE)
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 3, 7]), masks=masks)
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return sample


def segmentation():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE, scale_factor=(1.0, 1.0)))
    labels = torch.arange(SIZE[0] * SIZE[1]).view(1, *SIZE) // 1000
    sample.gt_sem_seg = PixelData(data=labels)
    return sample


def run(library: str, config: str) -> dict:
    cfg = read_config(f'{library}::{config}')
    with DefaultScope.overwrite_default_scope(library), quiet():
        torch.manual_seed(0)
        model = cfg.model
        for part in ('backbone', 'pretrained'):
            if isinstance(model.get(part), dict):
                model[part].init_cfg = None
                model[part].norm_cfg = dict(type='BN', requires_grad=True)
            elif part in model:
                model[part] = None
        preparation = model.get('data_preprocessor')
        if preparation and library == 'mmseg':
            preparation.size = SIZE
        for part in walk_dicts(model):
            if part.get('type') == 'SyncBN':
                part.type = 'BN'
            if 'score_thr' in part:  # random weights are sure of nothing
                part.score_thr = 0.0
        if 'num_queries' in model:  # DINO picks them among the pixels of its maps, of which a small image has few
            model.num_queries = 50
        net = MODELS.build(model)
        net.init_weights()
        generator = torch.Generator().manual_seed(1)
        for p in net.parameters():  # nowhere trivial: offsets and last layers begin at zero
            p.data += 0.01 * torch.randn(p.shape, generator=generator)
        image = torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8)
        sample = detection if library == 'mmdet' else segmentation
        begin = time.perf_counter()
        net.train()
        for module in net.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) or 'Dropout' in type(module).__name__:
                module.eval()
        torch.manual_seed(2)
        data = net.data_preprocessor(dict(inputs=[image], data_samples=[sample()]), True)
        losses, logged = net.parse_losses(net(**data, mode='loss'))
        losses.backward()
        grads = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
        net.eval()
        torch.manual_seed(3)
        with torch.no_grad():
            (result,) = net.test_step(dict(inputs=[image], data_samples=[sample()]))
    found = {}
    if library == 'mmdet':
        for name in ('bboxes', 'scores', 'labels', 'masks'):
            if name in result.pred_instances:
                found[name] = result.pred_instances[name]
    else:
        found['logits'] = result.seg_logits.data
    seconds = time.perf_counter() - begin
    return dict(losses={k: v.detach() for k, v in logged.items()}, grads=grads, found=found, seconds=seconds)


def main(out: str, *names: str) -> None:
    results = {'file': mmcv._ext.__file__}
    torch.set_num_threads(1)
    for library, configs in (('mmdet', DETECTORS), ('mmseg', SEGMENTORS)):
        for name, config in configs.items():
            if names and name not in names:
                continue
            try:
                results[name] = run(library, config)
            except RuntimeError as error:
                if 'implementation for device cpu not found' not in str(error):
                    raise
                print(f'{name}: mmcv compiles an operator of it for CUDA alone', flush=True)
            else:
                print(f'{name}: {results[name]["seconds"]:.1f} s', flush=True)
    torch.save(results, out)


if __name__ == '__main__':
    main(*sys.argv[2:])
