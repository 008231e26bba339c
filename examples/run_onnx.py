"""A file of `scalenet onnx`, with numpy, Pillow and onnxruntime alone: python run_onnx.py MODEL.onnx IMAGE OUT.png"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

if len(sys.argv) != 4:
    sys.exit(__doc__)
file, source, out = sys.argv[1:]
onnxruntime.set_default_logger_severity(3)
session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
image = ImageOps.exif_transpose(Image.open(source)).convert('RGB')
for step in about['test_pipeline']:  # the resizing of the library's test pipeline
    kind = step['type'].split('.')[-1]  # 'Resize', and 'mmdet.Resize'
    if kind == 'Resize':
        scale = step.get('scale') or np.multiply(image.size, step['scale_factor']) + 0.5
        scale = [int(side) for side in np.broadcast_to(scale, 2)]
        ratio = min(max(scale) / max(image.size), min(scale) / min(image.size))
        size = [int(side * ratio + 0.5) for side in image.size] if step.get('keep_ratio') else scale
        image = image.resize(size, Image.BILINEAR)
    elif kind == 'ResizeEdge':
        edges = dict(short=min(image.size), long=max(image.size), width=image.width, height=image.height)
        edge = edges[step.get('edge', 'short')]
        image = image.resize([int(side * step['scale'] / edge) for side in image.size], Image.BICUBIC)
    elif kind == 'CenterCrop':
        wide, high = np.minimum(np.broadcast_to(step['crop_size'], 2), image.size)
        left, top = round((image.width - wide) / 2), round((image.height - high) / 2)
        image = image.crop((left, top, left + wide, top + high))
    elif not kind.startswith(('Load', 'Pack')):
        sys.exit(f'{file} takes images prepared by a step {kind!r}, which this example does not know.')
pixels = np.asarray(image)[None]
takes = session.get_inputs()[0].shape[1:3]
if session.get_inputs()[0].type != 'tensor(uint8)':  # not exported with --with-preparation
    how = about['data_preprocessor']
    pixels = pixels if how.get('bgr_to_rgb') or how.get('to_rgb') else pixels[..., ::-1]
    pixels = (pixels - np.float32(how.get('mean') or 0)) / np.float32(how.get('std') or 1)
    pixels = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    takes = session.get_inputs()[0].shape[2:]
if any(isinstance(n, int) and n != side for n, side in zip(takes, image.size[::-1])):
    sys.exit(f'{file} takes images of {takes[0]} x {takes[1]} pixels, got {image.height} x {image.width}.')
names = [o.name for o in session.get_outputs()]
found = dict(zip(names, session.run(None, {'image': pixels})))
colours = np.random.default_rng(1).integers(60, 255, (len(about['classes']) + 1, 3))
shown, texts = np.asarray(image).copy(), []
if 'boxes' in found:
    for i in np.flatnonzero(found['scores'] >= 0.3):
        label = found['labels'][i]
        if 'masks' in found:
            shown[found['masks'][i]] = shown[found['masks'][i]] // 2 + colours[label] // 2
        texts.append((found['boxes'][i], f'{about["classes"][label]} {found["scores"][i]:.2f}', label))
elif 'labels' in found:
    shown = (shown // 2 + colours[found['labels'][0]] // 2).astype(np.uint8)
else:
    texts = [([0, 12 * n, 0, 12 * n], f'{about["classes"][k]} {found["scores"][0][k]:.2f}', k)
             for n, k in enumerate(found['scores'][0].argsort()[::-1][:5])]  # fmt: skip
shown = Image.fromarray(shown.astype(np.uint8))
draw = ImageDraw.Draw(shown)
for box, text, label in texts:
    draw.rectangle(list(map(float, box)), outline=tuple(map(int, colours[label])))
    draw.text(tuple(map(float, box[:2])), text, fill='white', stroke_width=1, stroke_fill='black')
    print(text, *(f'{side:.1f}' for side in box))
shown.save(out)
