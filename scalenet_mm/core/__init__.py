"""The paper's idea, on torch alone: read layer_map, adapters, tying, scale."""
