"""Getting images and metric weights: sources, downloads, archives."""
