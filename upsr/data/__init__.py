"""The images that are there: sub-images, the LMDB store, training patches, benchmarks."""
