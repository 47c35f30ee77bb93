"""Look into a model: block sizes and times, offsets, aligned features."""
