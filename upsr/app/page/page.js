// Sends the chosen images one after another, and shows each while it grows.
const form = document.querySelector("form"), fields = form.elements;
const section = document.querySelector("section"), zip = document.querySelector(".zip");
const start = document.querySelector(".start"), stop = document.querySelector(".stop");
const drop = document.querySelector(".drop"), template = document.querySelector("template");
const settings = await (await fetch("settings")).json();
const cards = [];
let sending = null; // an AbortController while images are sent

for (const name of Object.keys(settings.models)) fields.model.add(new Option(name));
for (const name of settings.forms) fields.format.add(new Option(name));
fields.model.value = settings.model;
fields.seed.value = settings.seed;
fields.scale.value = settings.models[settings.model];

// choosing images

fields.files.onchange = () => { add(fields.files.files); fields.files.value = ""; };
for (const name of ["dragover", "dragleave", "drop"]) {
  addEventListener(name, event => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") add(event.dataTransfer.files);
  });
}

function add(files) {
  for (const file of files) {
    const element = template.content.cloneNode(true).firstElementChild;
    const part = name => element.querySelector(name);
    const card = { file, element, part, made: null, token: null, sending: null };
    part("h2").textContent = file.name;
    part("[role=status]").textContent = "ready";
    part(".remove").onclick = () => {
      card.sending?.abort();
      cards.splice(cards.indexOf(card), 1);
      element.remove();
      offerZip();
    };
    part(".full").onclick = () => {
      part(".full").ariaPressed = part(".view").classList.toggle("full-size");
      resize(card);
    };
    part(".compare input").oninput = event => part(".compare").style.setProperty("--cut", `${event.target.value}%`);
    cards.push(card);
    section.append(element);
  }
}

// sending

form.onsubmit = async event => {
  event.preventDefault();
  const choice = { model: fields.model.value, scale: fields.scale.value, seed: fields.seed.value, format: fields.format.value };
  const key = JSON.stringify(choice);
  sending = new AbortController();
  [start.disabled, stop.disabled] = [true, false];
  for (let card; (card = cards.find(card => card.made !== key)) && !sending.signal.aborted;) {
    card.made = key;
    await send(card, choice);
    offerZip();
  }
  [start.disabled, stop.disabled] = [false, true];
};
stop.onclick = () => sending.abort();

async function send(card, choice) {
  const { file, part } = card;
  card.token = null;
  card.sending = new AbortController();
  for (const name of [".view", ".compare", ".download", ".full"]) part(name).hidden = true;
  part("[role=status]").classList.remove("wrong");
  part(".result").textContent = choice.model;
  say(card, "sending");
  try {
    if (file.size > settings.megabytes * 2 ** 20) {
      throw new Error(`${file.name}: more than ${settings.megabytes} MB: make it smaller, or use \`upsr upscale\``);
    }
    const query = new URLSearchParams({ name: file.name, ...choice });
    const signal = AbortSignal.any([sending.signal, card.sending.signal]);
    const response = await fetch(`upscale?${query}`, { method: "POST", body: file, signal });
    if (!response.ok) throw new Error(await reason(response));
    for await (const event of events(response)) await show(card, event);
    if (!card.token) throw new Error(`${file.name}: the server ended: start \`upsr app\` again`);
  } catch (error) {
    const stopped = error.name === "AbortError";
    if (stopped) card.made = null; // it is sent again the next time; after an error it would fail again
    const unanswered = error instanceof TypeError && `${file.name}: no answer: is \`upsr app\` running?`;
    say(card, stopped ? "stopped" : unanswered || error.message);
    part("[role=status]").classList.toggle("wrong", !stopped);
  }
  part("progress").hidden = true;
}

async function reason(response) {
  const text = await response.text();
  try { return JSON.parse(text).error; } catch { return `the server answered ${response.status}: try again later`; }
}

async function* events(response) {
  let rest = "";
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    yield* lines.map(line => JSON.parse(line));
  }
}

// showing

async function show(card, event) {
  const { part } = card, canvas = part("canvas"), progress = part("progress");
  if ("error" in event) throw new Error(event.error);
  if ("ahead" in event) say(card, event.ahead ? `waiting: ${event.ahead} before this one` : "upscaling");
  if ("tiles" in event) {
    Object.assign(progress, { hidden: false, max: event.tiles, value: 0, ariaLabel: "tiles" });
    card.size = [event.width, event.height];
    canvas.width = Math.min(event.width, 1280);
    canvas.height = Math.max(1, Math.round(canvas.width * event.height / event.width));
    part(".view").hidden = canvas.hidden = false;
    resize(card);
    await draw(canvas, event.original, 0, 1);
  }
  if ("tile" in event) progress.value = event.tile;
  if ("band" in event) await draw(canvas, event.band, event.top, event.share);
  if ("token" in event) await compare(card, event);
}

async function draw(canvas, source, top, share) {
  const image = new Image();
  image.src = source;
  await image.decode();
  canvas.getContext("2d").drawImage(image, 0, top * canvas.height, canvas.width, share * canvas.height);
}

async function compare(card, { token, name, bytes }) {
  const { part } = card, [before, after] = [part(".before"), part(".after")];
  before.src = `results/${token}/before`;
  after.src = `results/${token}/after`;
  await Promise.all([before.decode(), after.decode()]);
  part("canvas").hidden = true;
  part(".compare").hidden = part(".download").hidden = part(".full").hidden = false;
  Object.assign(part(".download"), { href: after.src, download: name, textContent: `Download ${name}` });
  card.token = token;
  say(card, `${card.size[0]} × ${card.size[1]} pixels, ${(bytes / 1e6).toFixed(1)} MB`);
}

function resize(card) {
  card.part("figure").style.width = `${card.size[0]}px`;
}

function say(card, text) {
  card.part("[role=status]").textContent = text;
}

function offerZip() {
  const done = cards.filter(card => card.token);
  zip.hidden = done.length < 2;
  zip.href = `zip?${new URLSearchParams(done.map(card => ["token", card.token]))}`;
}
