"""Images on disk: sub-images, the LMDB store, training patches, benchmarks."""
