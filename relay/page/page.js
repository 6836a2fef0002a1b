"use strict";

const CHANNELS = [
  "channel_delineation", "outlet", "subcatchment_delineation", "watershed", "sbs_upload", "landuse", "rangeland_cover",
  "soils", "climate", "rap_ts", "treatments", "wepp", "rhem", "observed", "debris_flow", "ash", "omni", "dss_export", "command",
];
const GROUPS = [
  ["Watershed", [["channels", "Channels"], ["outlet", "Outlet"], ["subcatchments", "Subcatchments"]]],
  ["Inputs", [
    ["sbs_map", "Burn severity"], ["landuse", "Land use"], ["rangeland_cover", "Rangeland cover"], ["soils", "Soils"],
    ["climate", "Climate"], ["rap_ts", "RAP series"], ["openet_ts", "OpenET series"],
  ]],
  ["Models", [["wepp", "WEPP"], ["rhem", "RHEM"], ["rusle", "RUSLE"], ["geneva", "Geneva"], ["roads", "Roads"]]],
  ["Results", [
    ["observed", "Observed fit"], ["debris", "Debris flow"], ["watar", "Ash transport"], ["omni_scenarios", "Omni scenarios"],
    ["omni_contrasts", "Omni contrasts"], ["run_path_ce", "Path cost"], ["dss_export", "DSS export"],
  ]],
];
// Which items a lock stands for, where the names differ; the first one not done is the one that runs.
const LOCKED = {
  watershed: ["channels", "outlet", "subcatchments"], disturbed: ["sbs_map"], ash: ["watar"], debris_flow: ["debris"],
  omni: ["omni_scenarios", "omni_contrasts"], path_ce: ["run_path_ce"],
};
const MOST_LINES = 3000;
const SILENCE = 35000;  // ms; the relay pings every 10 s, so after three missed ones the connection is dead
const APART = 25;  // ms between the first handshakes: Chromium holds one back for seconds while a dozen others wait
const RETRY_BASE = 500, RETRY_MAX = 15000;  // ms

// Where the relay asks for a token it is given to the page, as ?token=, and goes along with each websocket.
const GIVEN = new URLSearchParams(location.search).get("token");
const TOKEN = GIVEN ? `?token=${encodeURIComponent(GIVEN)}` : "";

const $ = id => document.getElementById(id);

/** A websocket that comes back: full jitter, so that a thousand pages do not return in step after a deploy. */
class Link {
  constructor(port, path, delay, onFrame, onState) {
    this.url = `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.hostname}:${port}/${path}${TOKEN}`;
    this.onFrame = onFrame;
    this.onState = onState;
    this.attempt = 0;
    this.state = "connecting";
    this.timer = setTimeout(() => this.open(), delay);
  }
  open() {
    clearTimeout(this.timer);
    this.set("connecting");
    const socket = this.socket = new WebSocket(this.url);
    socket.onopen = () => { this.set("live"); this.listen(); };
    socket.onmessage = event => { this.listen(); this.attempt = 0; this.take(event.data); };
    socket.onclose = () => this.lost(socket);
  }
  listen() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.lost(this.socket), SILENCE);
  }
  take(text) {
    let frame;
    try { frame = JSON.parse(text); } catch { return; }
    if (frame?.type === "ping") this.socket.send('{"type":"pong"}');
    else if (frame?.type === "hangup") this.end("waiting");
    else if (frame) this.onFrame(frame);
  }
  lost(socket) {
    if (socket !== this.socket) return;
    this.end("waiting");
    this.timer = setTimeout(() => this.open(), Math.random() * Math.min(RETRY_MAX, RETRY_BASE * 2 ** this.attempt++));
  }
  /** Close for good, or until `lost` opens again. */
  end(state) {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    socket?.close();
    this.set(state);
  }
  /** Try at once where a retry is due: the network or the reader is back. */
  hurry() { if (this.state === "waiting") { this.attempt = 0; this.open(); } }
  set(state) { this.state = state; this.onState(); }
}

/** The log: lines wait in a queue and are drawn once per animation frame, however fast they come. */
const log = {
  box: $("log"), queue: [], hidden: new Set(), chips: new Map(), following: true, unseen: 0, total: 0, drawing: false,

  add(channel, text) {
    this.queue.push({ channel, text, time: new Date() });
    if (this.queue.length > MOST_LINES) this.queue.shift();  // a hidden tab draws no frames
    this.total++;
    if (!this.drawing) { this.drawing = true; requestAnimationFrame(() => this.draw()); }
  },
  draw() {
    this.drawing = false;
    const rows = document.createDocumentFragment();
    for (const line of this.queue) rows.append(this.row(line));
    if (!this.following) this.unseen += this.queue.length;
    this.queue = [];
    this.box.append(rows);
    while (this.box.childElementCount > MOST_LINES) this.box.firstElementChild.remove();
    this.settle();
  },
  row({ channel, text, time }) {
    const row = document.createElement("div");
    const job = /^(rq:\S+)( +)(STARTED|COMPLETED|EXCEPTION|TRIGGER)\b/.exec(text);
    row.className = `row ${job ? job[3].toLowerCase() : ""}`;
    row.dataset.channel = channel;
    row.hidden = this.hidden.has(channel);
    row.style.setProperty("--hue", hue(channel));
    const said = part("span", "said", job ? "" : text);
    if (job) said.append(part("span", "dim", job[1]), text.slice(job[1].length));
    row.append(part("time", "", time.toTimeString().slice(0, 8)), part("span", "from", channel), said);
    this.tally(channel);
    return row;
  },
  tally(channel) {
    let chip = this.chips.get(channel);
    if (!chip) {
      chip = part("button", "chip", channel);
      chip.type = "button";
      chip.style.setProperty("--hue", hue(channel));
      chip.setAttribute("aria-pressed", "true");
      chip.append(part("span", "", "0"));
      chip.onclick = () => this.toggle(channel, chip);
      this.chips.set(channel, chip);
      $("chips").append(chip);
    }
    chip.lastChild.textContent = Number(chip.lastChild.textContent) + 1;
  },
  toggle(channel, chip) {
    const hide = !this.hidden.delete(channel);
    if (hide) this.hidden.add(channel);
    chip.setAttribute("aria-pressed", String(!hide));
    for (const row of this.box.children) if (row.dataset.channel === channel) row.hidden = hide;
    this.settle();
  },
  settle() {
    if (this.following) { this.box.scrollTop = this.box.scrollHeight; this.unseen = 0; }
    $("jump").hidden = this.following;
    $("jump").textContent = this.unseen ? `↓ ${this.unseen} new` : "↓ Latest";
    $("chips").hidden = !this.chips.size;
    $("empty").hidden = this.box.childElementCount > 0;
    $("count").textContent = this.total ? `${this.total.toLocaleString()} ${this.total === 1 ? "line" : "lines"}` : "";
  },
  scrolled() {
    const following = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 30;
    if (following !== this.following) { this.following = following; this.settle(); }
  },
  jump() { this.following = true; this.settle(); this.box.focus({ preventScroll: true }); },
  clear() {
    this.box.replaceChildren();
    $("chips").replaceChildren();
    Object.assign(this, { queue: [], chips: new Map(), hidden: new Set(), following: true, total: 0 });
    this.settle();
  },
};

/** The checklist: what is done, and what is locked because it runs. */
const checks = {
  items: new Map(), names: new Map(GROUPS.flatMap(([, items]) => items)),

  build() {
    $("checks").replaceChildren(...GROUPS.map(([title, items]) => this.group(title, items)));
  },
  group(title, items) {
    const group = document.createElement("div"), list = document.createElement("ul");
    for (const [name, label] of items) list.append(this.item(name, label));
    group.append(part("h3", "", title), list);
    return group;
  },
  item(name, label) {
    const item = document.createElement("li");
    item.dataset.item = name;
    const mark = svg("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" });
    mark.append(svg("circle", { cx: 10, cy: 10, r: 8 }), svg("path", { d: "M6.2 10.3l2.6 2.6 5-5.4" }));
    item.append(mark, part("span", "", label), part("span", "word", ""));
    this.items.set(name, item);
    return item;
  },
  show({ checklist = {}, lock_statuses: locks = {}, last_modified: modified }) {
    const unknown = Object.keys(checklist).filter(name => !this.items.has(name));
    if (unknown.length) $("checks").append(this.group("More", unknown.map(name => [name, name])));
    const running = new Set();
    const held = [...new Set(Object.keys(locks).filter(name => locks[name]).map(name => name.replace(/\.nodb$/, "")))];
    const others = held.filter(name => {
      const items = (LOCKED[name] ?? [name]).filter(item => this.items.has(item));
      if (items.length) running.add(items.find(item => !checklist[item]) ?? items[0]);
      return !items.length;
    });
    let done = 0;
    for (const [name, item] of this.items) {
      const state = running.has(name) ? "running" : checklist[name] ? "done" : "open";
      done += state === "done";
      item.dataset.state = state;
      item.lastChild.textContent = state === "open" ? "" : state;
    }
    $("progress").textContent = `${done} done${running.size ? `, ${running.size} running` : ""}`;
    $("progress").title = modified ? `last change ${new Date(modified * 1000).toLocaleString()}` : "";
    $("locks").hidden = !others.length;
    $("locks").textContent = `Locked: ${others.join(", ")}`;
  },
};

function part(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  return element;
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** A hue of its own for each channel: neighbours in the workflow stand far apart on the colour wheel. */
function hue(channel) { return Math.round((CHANNELS.indexOf(channel) + 1) * 137.5) % 360; }

function badge(name, label, links) {
  const live = links.filter(link => link.state === "live").length;
  const waiting = links.some(link => link.state === "waiting");
  const state = live === links.length ? "live" : waiting ? "waiting" : "connecting";
  $(`${name}-badge`).dataset.state = state;
  $(`${name}-badge`).replaceChildren(label, part("span", "", state === "waiting" ? "reconnecting" : state));
}

let links = [];

function watch(run) {
  for (const link of links) { link.onState = () => {}; link.end("waiting"); }
  const { statusPort, preflightPort } = document.documentElement.dataset;
  document.title = `${run} · WEPPcloud run`;
  $("run").value = $("empty-run").textContent = run;
  log.clear();
  checks.build();
  checks.show({});
  const logs = [], lists = [];
  links = [];
  if (!/^[A-Za-z0-9_.;-]+$/.test(run)) return;  // the relay would refuse it, and the field says why
  const showLogs = () => badge("status", "Log", logs);
  const showLists = () => {
    badge("preflight", "Checklist", lists);
    $("checks").classList.toggle("stale", lists[0].state !== "live");
  };
  const list = frame => { if (frame.type === "preflight") checks.show(frame); };
  lists.push(new Link(preflightPort, encodeURIComponent(run), 0, list, showLists));
  CHANNELS.forEach((channel, index) => {
    const path = `${encodeURIComponent(run)}:${encodeURIComponent(channel)}`;
    const line = frame => { if (frame.type === "status") log.add(channel, String(frame.data)); };
    logs.push(new Link(statusPort, path, index * APART, line, showLogs));
  });
  links = [...logs, ...lists];
  showLogs();
  showLists();
}

/** The run of this address: ?run=NAME, or #NAME, or the demo's. */
function chosen() {
  let hash = location.hash.slice(1);
  try { hash = decodeURIComponent(hash); } catch { /* not encoded */ }
  return new URLSearchParams(location.search).get("run") || hash || "demo";
}

$("choose").onsubmit = event => {
  event.preventDefault();
  const run = $("run").value.trim();
  const query = new URLSearchParams(location.search);
  query.set("run", run);
  if (run !== chosen()) history.pushState(null, "", `?${query}`);
  watch(run);
};
$("clear").onclick = () => log.clear();
$("jump").onclick = () => log.jump();
$("log").addEventListener("scroll", () => log.scrolled(), { passive: true });
addEventListener("resize", () => log.settle());
addEventListener("popstate", () => watch(chosen()));
addEventListener("online", () => links.forEach(link => link.hurry()));
document.addEventListener("visibilitychange", () => { if (!document.hidden) links.forEach(link => link.hurry()); });
watch(chosen());
