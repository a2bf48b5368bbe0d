"""Image files: formats, colours, transparency and metadata. libvips decodes and encodes."""
