"""Models as ONNX files: what is traced, what is written and checked, how a file is run."""
