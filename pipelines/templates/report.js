// The page is whole without this: it adds sorting, the slider, and one magnifying glass over all results at once.

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const descending = head.ariaSort !== "descending";
    const body = head.closest("table").tBodies[0];
    // A cell without value stays at the end either way.
    const key = (row) => Number(row.cells[head.cellIndex].dataset.value ?? (descending ? -Infinity : Infinity));
    for (const other of head.parentNode.cells) other.ariaSort = null;
    head.ariaSort = descending ? "descending" : "ascending";
    body.append(...[...body.rows].sort((a, b) => (descending ? key(b) - key(a) : key(a) - key(b))));
  });
}

for (const picture of document.querySelectorAll(".picture")) {
  const layers = new Map([...picture.querySelectorAll(".strip img")].map((img) => [img.dataset.layer, img]));
  const names = [...layers.keys()];
  if (names.length > 1) compare(picture, layers, names);
  magnify(picture.querySelector(".strip"));
}

function compare(picture, layers, names) {
  const box = picture.querySelector(".compare");
  const range = box.querySelector("input");
  const wanted = { before: "bicubic", after: "upsr" };
  const fallback = { before: names[0], after: names.at(-1) };
  for (const side of ["before", "after"]) {
    const select = picture.querySelector(`select.${side}`);
    const [image, tag] = [box.querySelector(`img.${side}`), box.querySelector(side === "before" ? ".left" : ".right")];
    for (const name of names) select.add(new Option(layers.get(name).alt, name));
    const show = () => {
      image.src = layers.get(select.value).src;
      image.classList.toggle("pixels", select.value === "lr");
      tag.textContent = layers.get(select.value).alt;
    };
    select.value = layers.has(wanted[side]) ? wanted[side] : fallback[side];
    select.addEventListener("change", show);
    show();
  }
  const split = () => box.style.setProperty("--split", `${range.value}%`);
  range.addEventListener("input", split); // the keyboard; a pointer takes hold anywhere
  const follow = (event) => {
    range.value = ((event.clientX - box.getBoundingClientRect().left) / box.clientWidth) * 100;
    split();
  };
  box.addEventListener("pointerdown", (event) => {
    box.setPointerCapture(event.pointerId);
    follow(event);
  });
  box.addEventListener("pointermove", (event) => box.hasPointerCapture(event.pointerId) && follow(event));
  for (const hidden of picture.querySelectorAll("[hidden]")) hidden.hidden = false;
}

function magnify(strip) {
  const rest = strip.style.cssText;
  strip.addEventListener("pointermove", (event) => {
    const box = event.target.closest(".open")?.getBoundingClientRect();
    if (!box) return;
    strip.style.setProperty("--x", `${((event.clientX - box.left) / box.width) * 100}%`);
    strip.style.setProperty("--y", `${((event.clientY - box.top) / box.height) * 100}%`);
  });
  strip.addEventListener("pointerleave", () => (strip.style.cssText = rest));
}

for (const hint of document.querySelectorAll(".enhanced")) hint.hidden = false;

addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.querySelector(":target .close")?.click();
});
