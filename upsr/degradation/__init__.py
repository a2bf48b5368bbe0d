"""Real-ESRGAN's second-order degradation: it makes the LR images that a network learns to restore."""
