"""How a known part of a clip enters a denoiser: frame replacement, masked video, structure control."""
