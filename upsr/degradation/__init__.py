"""Real-ESRGAN's second-order degradation: it makes the LR picture that a network learns to undo (METHOD.md)."""
