"""Pictures: what a run begins with, what leads it, and the way between pixels and latents."""
