// Adds sorting, the slider, and a magnifier shared by all results. The page is complete without it.

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const descending = head.ariaSort !== "descending";
    const text = (row) => row.cells[head.cellIndex].textContent;
    // Empty cells stay last in both directions.
    const key = (row) => Number(row.cells[head.cellIndex].dataset.value ?? (descending ? -Infinity : Infinity));
    const order = head.cellIndex ? (a, b) => key(a) - key(b) : (a, b) => -text(a).localeCompare(text(b), undefined, { numeric: true });
    for (const other of head.parentNode.cells) other.ariaSort = null;
    head.ariaSort = descending ? "descending" : "ascending";
    for (const body of head.closest("table").tBodies) {
      const rows = [...body.rows].filter((row) => row.cells.length > 1); // the name of the group stays first
      body.append(...rows.sort((a, b) => (descending ? order(b, a) : order(a, b))));
    }
  });
}

for (const article of document.querySelectorAll(".picture")) {
  const layers = new Map([...article.querySelectorAll(".strip img")].map((img) => [img.dataset.layer, img]));
  const names = [...layers.keys()];
  if (names.length > 1) compare(article, layers, names);
  magnify(article.querySelector(".strip"));
}

function compare(article, layers, names) {
  const box = article.querySelector(".compare");
  const range = box.querySelector("input");
  const preferred = { before: article.dataset.left, after: "upsr" };
  const fallback = { before: names[0], after: names.at(-1) };
  for (const side of ["before", "after"]) {
    const select = article.querySelector(`select.${side}`);
    const [image, tag] = [box.querySelector(`.${side} img`), box.querySelector(side === "before" ? ".left" : ".right")];
    for (const name of names) select.add(new Option(layers.get(name).alt, name));
    const show = () => {
      image.src = layers.get(select.value).src;
      image.classList.toggle("pixels", select.value === "lr");
      tag.textContent = layers.get(select.value).alt;
    };
    select.value = layers.has(preferred[side]) ? preferred[side] : fallback[side];
    select.addEventListener("change", show);
    show();
  }
  slide(box, range);
  for (const hidden of article.querySelectorAll("[hidden]")) hidden.hidden = false;
}

// Dragging moves the dividing line. When zoomed in, only a drag that starts near the line moves it; others pan.
function slide(box, range) {
  const view = { zoom: 1, x: 50, y: 50 };
  const draw = () => {
    box.style.setProperty("--split", `${range.value}%`);
    box.style.setProperty("--zoom", view.zoom);
    for (const side of ["x", "y"]) box.style.setProperty(`--${side}`, `${view[side]}%`);
    range.ariaValueText = `${Math.round(range.value)} %`;
    box.classList.toggle("zoomed", view.zoom > 1);
    box.querySelector("output").textContent = `${view.zoom}×`;
  };
  const follow = (event) => {
    range.value = ((event.clientX - box.getBoundingClientRect().left) / box.clientWidth) * 100;
    draw();
  };
  const clamp = (value) => Math.min(100, Math.max(0, value));
  const pan = (x, y) => {
    if (view.zoom > 1) [view.x, view.y] = [clamp(view.x + x / (view.zoom - 1)), clamp(view.y + y / (view.zoom - 1))];
    draw();
  };
  const zoom = (factor) => {
    view.zoom = Math.min(8, Math.max(1, view.zoom * factor));
    draw();
  };
  const line = () => box.getBoundingClientRect().left + (range.value / 100) * box.clientWidth;
  let last = null; // the pointer's position while it pans
  range.addEventListener("input", draw); // arrow keys, Home and End; the pointer is handled below
  range.addEventListener("keydown", (event) => {
    const arrow = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] }[event.key];
    const factor = { "+": 2, "=": 2, "-": 0.5 }[event.key];
    if (event.ctrlKey || event.metaKey || !(factor || (event.shiftKey && arrow))) return;
    event.preventDefault();
    factor ? zoom(factor) : pan(...arrow);
  });
  box.addEventListener("pointerdown", (event) => {
    if (event.target.closest(".zoomer")) return;
    box.setPointerCapture(event.pointerId);
    last = view.zoom > 1 && Math.abs(event.clientX - line()) > 24 ? event : null;
    if (!last) follow(event);
  });
  box.addEventListener("pointermove", (event) => {
    if (!box.hasPointerCapture(event.pointerId)) return;
    if (!last) return follow(event);
    pan((100 * (last.clientX - event.clientX)) / box.clientWidth, (100 * (last.clientY - event.clientY)) / box.clientHeight);
    last = event;
  });
  for (const button of box.querySelectorAll(".zoomer button")) button.addEventListener("click", () => zoom(Number(button.value)));
}

function magnify(strip) {
  const initial = strip.style.cssText;
  strip.addEventListener("pointermove", (event) => {
    const box = event.target.closest(".open")?.getBoundingClientRect();
    if (!box) return;
    strip.style.setProperty("--x", `${((event.clientX - box.left) / box.width) * 100}%`);
    strip.style.setProperty("--y", `${((event.clientY - box.top) / box.height) * 100}%`);
  });
  strip.addEventListener("pointerleave", () => (strip.style.cssText = initial));
}

for (const hint of document.querySelectorAll(".enhanced")) hint.hidden = false;

addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.querySelector(":target .close")?.click();
});
