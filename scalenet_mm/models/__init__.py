"""What is built from configs and checkpoints: models, predictions, counts, pictures, ONNX files."""
