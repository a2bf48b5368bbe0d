"""The measurements of `upsr bench`."""
