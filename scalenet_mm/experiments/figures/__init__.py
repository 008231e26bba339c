"""The analyses of Figs. 3 to 6: gradients, activations, similarity, drop path."""
