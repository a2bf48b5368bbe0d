"""A page in the browser that upscales images, on this machine alone."""
