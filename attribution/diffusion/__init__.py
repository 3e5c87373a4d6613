"""The model: a Stable Diffusion pipeline, its weights, tokens, attention, noise bank and loss."""
