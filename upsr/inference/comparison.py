"""Before and after: an image enlarged by bicubic interpolation against a model's result."""

import base64
import html
from pathlib import Path
from string import Template

import numpy as np
import torch

from upsr import images
from upsr.files import atomic
from upsr.inference.maps import labelled, strip
from upsr.photo.reading import Photo, open_photo

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { margin: 0; background: #222; color: #eee; font: 16px sans-serif; }
p { margin: 0; padding: .5em 1em; }
main { position: relative; width: ${width}px; }
img { display: block; width: 100%; }
img + img { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--cut, 50%)); }
input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
hr { position: absolute; top: 0; bottom: 0; left: var(--cut, 50%); margin: 0; border: 1px solid #fff; }
</style>
<p>$title: left bicubic, right the result. Move the line with the mouse, a finger or the arrow keys.</p>
<main>
<img alt="enlarged by bicubic interpolation" src="$before">
<img alt="enlarged by the model" src="$after">
<hr>
<input type="range" min="0" max="100" step="0.1" value="50" aria-label="where the result begins"
 oninput="this.parentNode.style.setProperty('--cut', this.value + '%')">
</main>
</html>
""")


def write_comparison(photo: Photo, target: Path) -> None:
    """Writes `target`.compare.png, a strip, and `target`.compare.html, a page with a slider, for a result in a file."""
    after = images.as_rgb8(open_photo(target).array())
    lr = torch.from_numpy(photo.rgb()).permute(2, 0, 1)[None]
    before = images.to_image(images.resize(lr, after.shape[:2]))
    page = PAGE.substitute(title=html.escape(target.name), width=after.shape[1], before=_uri(before), after=_uri(after))
    with atomic(target.with_name(f"{target.stem}.compare.html")) as temporary:
        temporary.write_text(page, encoding="utf-8")
    both = [labelled(image.copy(), name) for image, name in ((before, "bicubic"), (after, "result"))]
    images.write(target.with_name(f"{target.stem}.compare.png"), strip(both))


def _uri(image: np.ndarray) -> str:
    return f"data:image/png;base64,{base64.b64encode(images.encode_png(image)).decode()}"
