"""Training: one loop for both networks, their objectives, checkpoints and logs."""
