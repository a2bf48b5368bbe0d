"""Measuring speed: what `upsr bench` prints."""
