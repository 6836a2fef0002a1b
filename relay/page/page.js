const base = location.pathname.replace(/\/(run\/[^/]*\/?)?$/, "/");  // where this relay is: / or what a proxy says
const { ChecklistStream, StatusStream, ansi } = await import(`${location.origin}${base}{{relay_js}}`);

const CHANNELS = [
  "channel_delineation", "outlet", "subcatchment_delineation", "watershed", "sbs_upload", "landuse", "rangeland_cover",
  "soils", "climate", "rap_ts", "treatments", "wepp", "rhem", "observed", "debris_flow", "ash", "omni", "dss_export", "command",
];
const OTHER_CHANNELS = ["archive", "batch", "diagnostics", "fork", "roads"];  // offered where a channel is added
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
const LOCKED = new Map(Object.entries({
  watershed: ["channels", "outlet", "subcatchments"], disturbed: ["sbs_map"], ash: ["watar"], debris_flow: ["debris"],
  omni: ["omni_scenarios", "omni_contrasts"], path_ce: ["run_path_ce"],
}));
const LONGEST = 175;  // characters of a run id: with the longest channel they are the 200 that the relay takes
const OWN = ["relay.js", "livez", "readyz", "metrics", "health"];  // addresses of the relay itself
const KEPT = 3000, KEPT_SIZE = 4e6;  // lines and characters of a channel: a 30-minute tab must not grow
const ROWS = 3000;  // drawn, and at most a block more; what is older is in the download
const BLOCK = 50;  // rows that the browser lays out together, or not at all where they are out of sight: 200 new rows take 30 ms or 3
const DRAWING = 400;  // new rows of a frame; the rest of them come with the next ones
const SHOWN = 4000;  // characters of a line; a tab stops over longer ones
const AT_ONCE = 6;  // handshakes: Chromium holds one back for seconds while a dozen others wait
const TOGETHER = 20000;  // ms within which holes of several channels are one: they come back up to 15 s apart
const TRACE = { lines: 60, silence: 10000, kept: 20 };  // what belongs to an exception: so many lines, until so many ms without
// Python's tracebacks: indented, a sentence of its own, or `module.Name: what`. Other jobs speak on the same channel.
const OF_A_TRACE = /^(\s|$|Traceback \(|During handling of |The above exception |(\w+\.)*[A-Z]\w*(: |$))/;
const SPANS = 200;  // of the timeline
const MINUTE = 60000, DAY = 1440 * MINUTE, MONTH = 30 * DAY;
const CLOCKS = 3000;  // so far apart may those of a worker and this browser be, and still be taken for one

const $ = id => document.getElementById(id);
const WIDE = matchMedia("(min-width: 761px)");

// --- small things ---------------------------------------------------------------------------------------------

function part(tag, name, text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  return element;
}

function button(text, act) {
  const element = part("button", "text", text);
  element.type = "button";
  element.onclick = act;
  return element;
}

function svg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Set a text only where it is another one: a live region is read out on every change. */
function say(element, text) { if (element.textContent !== text) element.textContent = text; }

function clock(ms) { return new Date(ms).toTimeString().slice(0, 8); }

/** The day of a time, with its year where that is another one. */
function day(ms) {
  const date = new Date(ms), text = date.toDateString().slice(4);
  return date.getFullYear() === new Date().getFullYear() ? text.slice(0, 6) : text;
}

function when(ms) { return day(ms) === day(Date.now()) ? clock(ms) : `${day(ms)} ${clock(ms)}`; }

/** A begin and an end (0: none yet), with their days where they are not both of today. */
function between(from, to) {
  return day(from) === day(to || Date.now()) ? [when(from), clock(to)] : [from, to].map(ms => `${day(ms)} ${clock(ms)}`);
}

function lasting(ms) {
  const s = Math.max(0, Math.round(ms / 1000)), two = number => String(number).padStart(2, "0");
  if (s < 60) return s ? `${s} s` : "< 1 s";
  return s < 3600 ? `${Math.floor(s / 60)}:${two(s % 60)} min` : `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)} h`;
}

function count(number, one, many = `${one}s`) { return `${number.toLocaleString("en")} ${number === 1 ? one : many}`; }

/** A hue of its own for each channel: neighbours in the workflow stand far apart on the colour wheel. */
function hue(channel) {
  let number = CHANNELS.indexOf(channel) + 1;
  if (!number) for (const letter of channel) number = (number * 31 + letter.codePointAt(0)) % 1009;
  return Math.round(number * 137.5) % 360;
}

/** A name from outside, with nothing in it that acts unseen. */
function visible(name) { return ansi(name).map(piece => piece.text).join(""); }

// --- the address: which run, which channels, and the permission ------------------------------------------------

const address = {
  base,
  query: () => new URLSearchParams(location.search),

  /** The run of this address: /run/NAME, or ?run=NAME or #NAME as it was of old; "" where it names none. */
  run() {
    const path = /\/run\/([^/]*)\/?$/.exec(location.pathname)?.[1] ?? "";
    return this.query().get("run") ?? decoded(path || location.hash.slice(1));
  },
  channels() {
    const given = this.query().get("channels")?.split(",").map(name => name.trim()).filter(Boolean);
    return given?.length ? [...new Set(given)].slice(0, 60) : CHANNELS;
  },
  /** Where a run is, with what else the query says (the token). */
  of(run, more = {}) {
    const query = this.query();
    query.delete("run");
    for (const [name, value] of Object.entries(more)) query.set(name, value);
    const text = query.toString().replaceAll("%2C", ",");
    return `${this.base}run/${run}${text && `?${text}`}`;
  },
};

function decoded(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

/** What is wrong with a name of `what` made of `allowed`, as a sentence; "" where the relay takes it. */
function wrong(name, what, allowed, words) {
  const bad = [...new Set(name.match(new RegExp(`[^${allowed}]`, "gu")) ?? [])];
  const shown = visible(name.length > 60 ? `${name.slice(0, 60)}…` : name);
  const signs = bad.slice(0, 5).map(sign => sign === " " ? "a space" : `“${visible(sign)}”`).join(", ");
  if (bad.length) return `“${shown}” is no ${what}: it has ${signs}. Only ${words} may be in it.`;
  if (name.length > LONGEST) return `This ${what} has ${name.length} characters; ${LONGEST} are the most.`;
  if (/^\.*$/.test(name) || name.startsWith("__")) return `“${shown}” is no ${what}: ${name ? "one of dots only, or with __ in front, cannot be" : "it is empty"}.`;
  if (name.split(";;").length > 5) return `“${shown}” is no ${what}: it has more than five parts between “;;”.`;
  return "";
}

/** Runs looked at before, newest first. Where the browser keeps nothing (private windows, policies) there are none. */
const recent = {
  get() {
    try {
      const runs = JSON.parse(localStorage.getItem("relay.runs") ?? "[]");
      return Array.isArray(runs) ? runs.filter(run => typeof run === "string" && !wrongRun(run)).slice(0, 8) : [];
    } catch { return []; }
  },
  add(run) {
    try { localStorage.setItem("relay.runs", JSON.stringify([run, ...this.get().filter(other => other !== run)].slice(0, 8))); } catch { /* kept nowhere */ }
  },
  show() {
    $("recent").hidden = !this.get().length;
    $("recent").querySelector("ul").replaceChildren(...this.get().map(run => {
      const item = document.createElement("li"), link = part("a", "", run);
      link.href = address.of(run);
      link.onclick = event => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        go(run);
      };
      item.append(link);
      return item;
    }));
  },
};

function wrongRun(run) {
  if (OWN.includes(run)) return `“${run}” is no run id: it is an address of the relay itself.`;
  return wrong(run, "run id", "A-Za-z0-9_.;\\-", "letters, digits and _ . ; -");
}
function wrongChannel(name) { return wrong(name, "channel", "A-Za-z0-9_.\\-", "letters, digits and _ . -"); }

// --- the log ---------------------------------------------------------------------------------------------------

/** Lines are kept by channel and drawn once per animation frame, however fast they come. */
const log = {
  box: $("log"), channels: new Map(), shown: [], fresh: [], filter: null, following: true, paused: false, until: Infinity,
  seq: 0, unseen: 0, waiting: 0, hits: 0, unread: 0, gap: null, last: null, cleared: false, top: 0, resized: -1000, frame: 0, asked: false,

  add(name) {
    const channel = { name, entries: [], lines: 0, size: 0, total: 0, hidden: false, chip: this.chip(name), stream: null };
    this.channels.set(name, channel);
    channel.chip.onclick = () => this.toggle(channel);
    $("chips").append(channel.chip);
    return channel;
  },
  chip(name) {
    const chip = part("button", "chip", visible(name));
    chip.type = "button";
    chip.dataset.channel = name;
    chip.hidden = CHANNELS.includes(name);  // until it has lines: nineteen empty ones would bury the others
    chip.style.setProperty("--hue", hue(name));
    chip.setAttribute("aria-pressed", "true");
    chip.append(part("span", "", "0"));
    return chip;
  },
  take(channel, { added, dropped }) {
    channel.total += dropped;  // came and went in a hidden tab, unseen
    for (const line of added) {
      const entry = { seq: ++this.seq, at: line.at, channel, text: line.text, kind: line.kind, job: line.job, hit: 0, kept: true };
      if (line.kind === "gap") this.gap = entry;
      channel.entries.push(entry);
      channel.size += entry.text.length;
      const counts = Number(entry.kind !== "gap");
      channel.total += counts;
      channel.lines += counts;
      exceptions.take(entry);
      if (!this.shows(entry)) continue;
      entry.hit = counts;
      this.hits += counts;
      if (document.hidden) this.unread += counts;
      if (this.paused) this.waiting += counts;
      else {
        this.fresh.push(entry);
        if (!this.following) this.unseen += counts;
      }
    }
    let excess = Math.max(0, channel.entries.length - KEPT);
    for (let n = 0; n < excess; n++) this.forget(channel.entries[n]);
    while (channel.size > KEPT_SIZE && excess < channel.entries.length - 1) this.forget(channel.entries[excess++]);
    channel.entries.splice(0, excess);
    if (this.fresh.length > 2 * ROWS) this.fresh.splice(0, this.fresh.length - ROWS);  // a hidden tab draws no frames
    if (channel.total) channel.chip.hidden = false;
    this.ask();
  },
  forget(entry) {
    entry.channel.size -= entry.text.length;
    this.hits -= entry.hit;
    entry.channel.lines -= Number(entry.kind !== "gap");
    entry.kept = false;
  },
  shows(entry) { return !entry.channel.hidden && (!this.filter || this.filter.test(plain(entry.text))); },

  /** With the next frame; then rest as long as it took: a page that only draws takes nothing from its websockets (1013). */
  ask() {
    this.asked = true;
    if (this.frame) return;
    this.frame = requestAnimationFrame(began => {
      this.asked = false;
      this.draw();
      setTimeout(() => setTimeout(() => this.rested(), performance.now() - began));  // a timer comes after the drawing
    });
  },
  rested() {
    this.frame = 0;
    if (this.asked) this.ask();
  },
  draw() {
    let drawn = Math.max(0, this.fresh.length - ROWS);
    const end = Math.min(this.fresh.length, drawn + DRAWING);
    while (drawn < end) {
      let block = this.box.lastElementChild;
      if (!block || block.childElementCount >= BLOCK) this.box.append(block = this.block());
      const some = this.fresh.slice(drawn, Math.min(end, drawn + BLOCK - block.childElementCount));
      block.append(...some.map(entry => this.row(entry)));
      this.shown.push(...some);
      drawn += some.length;
    }
    this.fresh.splice(0, drawn);
    while (this.shown.length >= ROWS + BLOCK) {
      sizes.unobserve(this.box.firstElementChild);
      this.box.firstElementChild.remove();
      for (const entry of this.shown.splice(0, BLOCK)) entry.row = null;
    }
    exceptions.draw();
    if (this.fresh.length) this.ask();
    this.settle();
  },
  block() {
    const block = part("div", "block");
    sizes.observe(block);
    return block;
  },
  /** Draw anew, after a change of what is shown: the newest ROWS of all that is kept. */
  redraw() {
    this.hits = this.waiting = this.unseen = 0;
    const found = [];
    for (const channel of this.channels.values()) {
      for (const entry of channel.entries) {
        entry.row = null;
        const shown = this.shows(entry);
        entry.hit = Number(shown && entry.kind !== "gap");
        this.hits += entry.hit;
        if (entry.seq > this.until) this.waiting += entry.hit;
        else if (shown) found.push(entry);
      }
    }
    for (const block of this.box.children) sizes.unobserve(block);
    this.box.replaceChildren();
    this.last = null;
    this.shown = [];
    this.fresh = found.sort((one, other) => one.seq - other.seq).slice(-ROWS);
    this.draw();
  },
  row(entry) {
    const row = document.createElement("div"), said = part("span", "said");
    row.className = `row ${entry.kind === "line" ? level(entry.text) : entry.kind}`;
    row.dataset.channel = entry.channel.name;
    row.style.setProperty("--hue", hue(entry.channel.name));
    this.write(said, entry);
    row.append(part("time", "", clock(entry.at)), this.from(entry), said);
    entry.row = row;
    if (entry.kind === "gap") this.join(entry);
    this.last = entry;
    return row;
  },
  /** Nineteen channels lose one relay: holes with no line between them are one row, that of the first. */
  join(gap) {
    const last = this.last?.head;
    gap.head = last?.row && last.text === gap.text ? last : gap;
    if (gap.head === gap) gap.holes = new Set();
    const { holes, row, text } = gap.head;
    holes.add(gap.channel);
    gap.row.hidden = gap.head !== gap;
    if (holes.size < 2) return;
    row.children[1].textContent = "";
    row.lastChild.textContent = `${text.replace(/\.$/, "")} (${holes.size} channels).`;
  },
  from({ channel }) {
    const from = part("span", "from", visible(channel.name));
    from.title = from.textContent;
    return from;
  },
  /** The text of a line in its colours, the matches marked; what would stop the tab is cut. */
  write(said, { text, kind }) {
    let pieces = ansi(text.length > SHOWN ? text.slice(0, SHOWN) : text);
    if (kind !== "line") {
      const [, job, rest] = /^(rq:\S+)(.*)$/s.exec(pieces[0].text) ?? [];
      if (job) pieces = [{ text: job, name: "dim", style: {} }, { text: rest, style: pieces[0].style }, ...pieces.slice(1)];
    }
    const matches = this.matches(pieces);
    let at = 0;
    for (const { text: piece, style, name } of pieces) {
      const holder = name || Object.values(style).some(Boolean) ? part("span", name) : said;
      if (holder !== said) { paint(holder, style); said.append(holder); }
      let from = 0;
      for (const [start, end] of matches) {
        const first = Math.max(start - at, from), last = Math.min(end - at, piece.length);
        if (first >= last) continue;
        holder.append(piece.slice(from, first), part("mark", "", piece.slice(first, last)));
        from = last;
      }
      holder.append(piece.slice(from));
      at += piece.length;
    }
    if (text.length > SHOWN) said.append(part("span", "dim", ` … ${count(text.length - SHOWN, "more character")}, in the download`));
  },
  matches(pieces) {
    if (!this.filter) return [];
    const every = new RegExp(this.filter.source, "giu");
    return [...pieces.map(piece => piece.text).join("").matchAll(every)].map(match => [match.index, match.index + match[0].length]);
  },
  toggle(channel, hidden = !channel.hidden) {
    channel.hidden = hidden;
    channel.chip.setAttribute("aria-pressed", String(!hidden));
    this.redraw();
  },
  find(text) {
    this.filter = text ? new RegExp(text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "iu") : null;
    this.redraw();
    say($("said"), text ? `${count(this.hits, "line")} found` : "");
  },
  pause(paused) {
    this.paused = paused;
    this.until = paused ? this.seq : Infinity;
    this.waiting = 0;
    $("pause").setAttribute("aria-pressed", String(paused));
    if (paused) this.settle();
    else this.redraw();
  },
  /** Bring a line into view, whatever hides it; false where it is no longer kept. */
  show(entry) {
    if (!entry.kept) return false;
    if (entry.seq > this.until) this.pause(false);
    if (!entry.row) {
      $("filter").value = "";
      this.filter = null;
      this.toggle(entry.channel, false);
      while (this.fresh.length) this.draw();
    }
    if (!entry.row) {  // among the kept ones of its channel, but behind 3000 newer ones of others
      for (const other of this.channels.values()) {
        other.hidden = other !== entry.channel;
        other.chip.setAttribute("aria-pressed", String(!other.hidden));
      }
      this.redraw();
      while (this.fresh.length) this.draw();
    }
    this.following = false;
    for (const found of this.box.querySelectorAll(".found")) found.classList.remove("found");
    const row = entry.head?.row ?? entry.row;
    row.classList.add("found");
    row.tabIndex = -1;
    row.focus({ preventScroll: true });
    this.settle();
    row.scrollIntoView({ block: "center" });
    requestAnimationFrame(() => row.scrollIntoView({ block: "center" }));  // what stands above it has its size now
    return true;
  },
  toEnd() {
    if (!this.following) return;
    this.box.scrollTop = this.box.scrollHeight;
    this.top = this.box.scrollTop;
  },
  settle() {
    if (this.following) this.unseen = 0;
    this.toEnd();
    this.box.classList.toggle("follows", this.following);
    $("jump").hidden = this.following;
    $("jump").textContent = this.unseen ? `↓ ${count(this.unseen, "new line")}` : "↓ Latest";
    let kept = 0;
    for (const channel of this.channels.values()) {
      kept += channel.lines;
      say(channel.chip.lastChild, channel.total.toLocaleString("en"));
    }
    say($("count"), this.filter ? `${this.hits.toLocaleString("en")} of ${count(kept, "line")} match` : kept ? count(kept, "line") : "");
    say($("pause"), this.paused ? (this.waiting ? `Resume (${this.waiting.toLocaleString("en")} waiting)` : "Resume") : "Pause");
    $("copy").disabled = $("download").disabled = $("clear").disabled = !kept;
    $("empty").hidden = this.shown.length > 0 || this.fresh.length > 0;
    this.vacant(kept);
  },
  /** Why no line is there. That none was published nobody can know who is not connected. */
  vacant(kept) {
    const streams = [...this.channels.values()].map(channel => channel.stream);
    const why = kept ? (this.paused ? "Paused." : "No line of those that have come is among the channels and the filter chosen.")
      : !streams.some(stream => stream?.state === "live" && !stream.missing) ? "Not connected: what is published now does not come here."
      : this.cleared ? "Cleared. New lines appear here as the run writes them."
      : "Nothing published since this page was opened. Lines appear here as the run writes them.";
    say($("empty-text"), why);
  },
  scrolled() {
    // A window that turns or shrinks scrolls too, and says so first; that is no reader who wants to look back.
    if (this.following && performance.now() - this.resized < 300) return this.toEnd();
    const top = this.box.scrollTop, atEnd = this.box.scrollHeight - top - this.box.clientHeight < 30;
    const following = atEnd || (this.following && top >= this.top - 1);
    this.top = top;
    if (following !== this.following) { this.following = following; this.settle(); }
  },
  jump() {
    this.following = true;
    this.settle();
    this.box.focus({ preventScroll: true });
  },
  clear() {
    for (const channel of this.channels.values()) {
      for (const entry of channel.entries) entry.kept = false;
      Object.assign(channel, { entries: [], lines: 0, size: 0, total: 0 });
    }
    Object.assign(this, { following: true, unread: 0, gap: null, cleared: true });
    this.redraw();
  },
  end() {
    for (const { stream } of this.channels.values()) stream?.stop();
    this.clear();
    this.channels.clear();
    $("chips").replaceChildren();
    $("filter").value = "";
    Object.assign(this, { filter: null, cleared: false });
    this.pause(false);
  },
  async copy() {
    const lines = [...this.shown, ...this.fresh].map(entry => `${clock(entry.at)} ${entry.channel.name} ${indented(entry.text)}`);
    const copied = await clip(`${lines.join("\n")}\n`);
    flash($("copy"), copied ? "Copied" : "Not allowed", copied ? `${count(lines.length, "line")} copied` : "The browser does not let this page copy");
  },
  download() {
    const all = [...this.channels.values()].flatMap(channel => channel.entries).sort((one, other) => one.seq - other.seq);
    const lines = all.map(entry => `${new Date(entry.at).toISOString()}\t${entry.channel.name}\t${indented(entry.text)}\n`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "text/plain;charset=utf-8" }));
    link.download = `${current.run.replaceAll(";", "_")}-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.log`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say($("said"), `${count(lines.length, "line")} downloaded`);
  },
};

/** The end stays in view when a block takes its size, or the log itself another one. */
const sizes = new ResizeObserver(() => log.toEnd());

/** A text as it is read, for the filter: without the sequences that colour it. */
function plain(text) { return text.includes("\x1b") ? visible(text) : text; }

/** A text outside the page: no further line of it can pass for an entry, nor a terminal be told anything by it. */
function indented(text) { return visible(text).replaceAll("\n", "\n\t"); }

function level(text) {
  const [, word] = /\b(CRITICAL|FATAL|ERROR|WARNING|WARN|DEBUG|Traceback \(most recent)\b/.exec(plain(text.slice(0, 160))) ?? [];
  return !word ? "" : word.startsWith("WARN") ? "warning" : word === "DEBUG" ? "debug" : "error";
}

function paint(element, style) {
  for (const name of ["bold", "dim", "italic", "underline"]) if (style[name]) element.classList.add(`ansi-${name}`);
  if (style.fg) element.style.color = style.fg;
  if (style.bg) element.style.backgroundColor = style.bg;
}

/** Into the clipboard; by the old way where the page came without TLS, for there the new one is not. */
async function clip(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = part("textarea", "unseen", text), focused = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return copied;
  }
}

function flash(element, text, sentence) {
  const before = element.dataset.label ??= element.textContent;
  element.textContent = text;
  say($("said"), sentence);
  clearTimeout(element.flashing);
  element.flashing = setTimeout(() => { element.textContent = before; }, 2000);
}

// --- exceptions --------------------------------------------------------------------------------------------------

/** What a job was to do, by a line of it. */
function call({ text }) { return /^rq:\S+ +[A-Z]+\s*(.*)/.exec(text)?.[1] ?? ""; }

/** Jobs that failed: the line that says so, and what its channel says after it until another job speaks. */
const exceptions = {
  list: [], open: new Map(), dirty: false, more: 0,

  take(entry) {
    if (entry.kind === "completed") for (const item of this.list) item.mended ||= call(item.entry) === call(entry);
    let item = this.open.get(entry.channel);
    if (entry.kind === "exception") {
      item = { entry, lines: [], last: entry.at, element: null, pre: part("pre", ""), mended: false };
      this.list.unshift(item);
      for (const old of this.list.splice(TRACE.kept)) {
        old.element?.remove();
        this.more++;
      }
      this.open.set(entry.channel, item);
    } else if (!item) return;
    else if (item.lines.length >= TRACE.lines || !this.belongs(entry, item)) return void this.open.delete(entry.channel);
    item.last = entry.at;
    item.lines.push(visible(entry.text.slice(0, SHOWN)));
    item.dirty = this.dirty = true;
  },
  belongs(entry, item) {
    if (entry.job) return entry.job === item.entry.job;
    return entry.kind === "line" && OF_A_TRACE.test(plain(entry.text.slice(0, 160))) && entry.at - item.last < TRACE.silence;
  },
  /** With the lines, once per frame. */
  draw() {
    if (!this.dirty) return;
    this.dirty = false;
    for (const item of [...this.list].reverse()) {
      if (!item.element) $("exception-list").prepend(this.build(item));
      if (item.dirty) item.pre.textContent = item.lines.join("\n");
      item.dirty = false;
    }
    $("exceptions").hidden = !this.list.length;
    if (!this.list.length) this.more = 0;
    say($("exceptions-title").firstChild, `${count(this.list.length + this.more, "job failed", "jobs failed")}${this.more ? `, the last ${this.list.length} of them here` : ""}`);
    title();
  },
  build(item) {
    const { entry, pre } = item, what = part("div", "what");
    const name = part("b", "", visible(call(entry).slice(0, 200)) || "EXCEPTION");
    const show = button("Show line", () => {
      if (!log.show(entry)) Object.assign(show, { disabled: true, textContent: "Line no longer kept" });
    });
    const dismiss = button("Dismiss", () => this.dismiss(item));
    for (const control of [show, dismiss]) control.setAttribute("aria-label", `${control.textContent}: ${name.textContent}`);
    pre.tabIndex = 0;
    pre.setAttribute("role", "group");
    pre.setAttribute("aria-label", `What was said: ${name.textContent}`);
    what.append(name, part("span", "dim", `${clock(entry.at)} ${visible(entry.channel.name)}`), show, dismiss);
    item.element = document.createElement("article");
    item.element.append(what, pre);
    return item.element;
  },
  dismiss(...items) {
    for (const item of items) {
      this.list.splice(this.list.indexOf(item), 1);
      if (this.open.get(item.entry.channel) === item) this.open.delete(item.entry.channel);
      item.element?.remove();
    }
    this.dirty = true;
    this.draw();
    log.settle();
  },
};

// --- the checklist -------------------------------------------------------------------------------------------------

/** A property of a table from outside, where it has it itself. */
function own(table, name) { return table && Object.hasOwn(table, name) ? table[name] : undefined; }

/** A time of a worker, in ms; 0 where there is none, or one that no calendar has. */
function moment(seconds) { return new Date(1000 * seconds).getTime() || 0; }

/** What is done, and what is locked because it runs. When a step was done, and why it is stale, is the relay's word. */
const checks = {
  items: new Map(), times: null, since: 0, known: 0, blind: true, worked: null, workedAt: 0,

  build() {
    this.items.clear();
    Object.assign(this, { times: null, since: 0, known: 0, blind: true, worked: null });
    $("checks").replaceChildren(...GROUPS.map(([title, items]) => this.group(title, items)));
    $("locks").hidden = true;
    say($("progress"), "not known yet");
  },
  group(title, items) {
    const group = document.createElement("div"), list = document.createElement("ul");
    for (const [name, label] of items) list.append(this.item(name, label));
    group.append(part("h3", "", title), list);
    return group;
  },
  item(name, label) {
    const element = document.createElement("li"), word = part("span", "word"), why = part("span", "why");
    element.dataset.item = name;
    element.dataset.state = "open";
    const mark = svg("svg", { viewBox: "0 0 20 20", role: "img", "aria-label": "open" });
    mark.append(svg("circle", { cx: 10, cy: 10, r: 8 }), svg("path", { d: "M6.2 10.3l2.6 2.6 5-5.4" }));
    element.append(mark, part("span", "", visible(label)), word, why);
    this.items.set(name, { name, label: visible(label), element, word, why, done: false, doneAt: 0, wasDoneAt: 0, startedAt: 0, anew: false, run: null, cut: null, ran: 0, whole: true, after: 0 });
    return element;
  },
  /** Nobody looks from here on, until the next state that is current; `since` is by the relay's clock, so not by much another time. */
  lose(since) {
    if (!this.blind && this.known && since > this.known - 2 * MINUTE && since < Date.now()) this.known = since;
    this.blind = true;
  },
  show({ checklist = {}, lock_statuses: locks = {} }, times, missing) {
    const now = Date.now(), { blind, since, known } = this;
    if (missing && since) return;  // nothing that is known to be so now
    Object.assign(this, { times, blind: missing, since: since || now, known: missing ? known : now });
    const unknown = Object.keys(checklist).filter(name => !this.items.has(name)).slice(0, 50);
    if (unknown.length) $("checks").append(this.group("More", unknown.map(name => [name, name])));
    for (const item of this.items.values()) {
      if (blind && item.run) this.end(item, known, true);  // it may have ended unseen, and have begun again
      item.startedAt = moment(own(times?.started, item.name));
      this.turn(item, !!checklist[item.name], moment(own(times?.done, item.name)), since && known);
    }
    const { running, others } = this.running(locks);
    for (const item of this.items.values()) {
      if (item.run && !running.has(item)) this.end(item, now, false);
      else if (!item.run && running.has(item)) this.begin(item, now, !blind, known);
      else if (item.run) this.place(item);
      else if (item.cut?.startedAt === item.startedAt) item.cut = null;  // seen to be over, and not as lost as its hash
    }
    $("locks").hidden = !others.length;
    const named = others.slice(0, 8).map(name => visible(name.length > 40 ? `${name.slice(0, 40)}…` : name)).map(name => /[^\s\u2800\u3164]/.test(name) && !name.includes(",") ? name : `"${name}"`);
    say($("locks"), `Locked: ${named.join(", ")}${others.length > 8 ? ` and ${others.length - 8} more` : ""}`);
    this.tick();
    timeline.ask();
  },
  running(locks) {
    const held = [...new Set(Object.keys(locks).filter(name => locks[name]).map(name => name.replace(/\.nodb$/, "")))];
    const running = new Set();
    const others = held.filter(name => {
      const items = (LOCKED.get(name) ?? [name]).map(item => this.items.get(item)).filter(Boolean);
      if (items.length) running.add(items.find(item => item.startedAt > item.doneAt) ?? items.find(item => !item.done) ?? items[0]);
      return !items.length;
    });
    return { running, others };
  },
  /** Whether an item is ticked, and when it was last done; `known` is the time up to which that of before held. */
  turn(item, done, doneAt, known) {
    const ticked = done !== item.done, again = done && doneAt && item.doneAt && doneAt !== item.doneAt;
    const back = done && doneAt === item.wasDoneAt;
    if (!doneAt && item.doneAt) item.ran = 0;
    // The times come ahead of the snapshot, and may be shown before it: where they are gone, the tick of before is still there.
    Object.assign(item, { done, doneAt, wasDoneAt: done && doneAt || item.wasDoneAt });
    if (!known || !(ticked || again)) return;
    item.anew = done;
    const then = done ? doneAt : Math.max(...this.newer(item).map(other => moment(own(this.times.done, other)))), now = Date.now();
    // Not where it was done before and came back, as after a loss of Redis, nor by a clock that is another one.
    const near = !back && then > known - CLOCKS && then < now + CLOCKS;
    // Somewhere in that second, and after what was known before.
    timeline.mark(item, near ? Math.max(known, Math.min(then + 999, now)) : now, near ? then : 0);
  },
  /** `seen`: it did not run a moment ago; else it was not locked at `known` (0: nobody had looked). */
  begin(item, now, seen, known) {
    if (item.after !== item.doneAt) Object.assign(item, { ran: 0, whole: true, after: item.doneAt });
    const { cut, startedAt, doneAt } = item;
    const same = cut && startedAt && cut.startedAt === startedAt && cut.doneAt === doneAt;
    item.run = same ? cut : { at: now, from: now, floor: known || now - DAY, exact: seen, startedAt, doneAt, span: null };
    item.cut = null;
    if (!this.known) return;  // as of earlier: nothing that this page has seen
    item.run.span ??= timeline.begin(item);
    Object.assign(item.run.span, { to: 0, cut: false });
    this.place(item);
  },
  /** What began unseen began when its worker says, where that can be; it may say so later. */
  place({ run, startedAt, doneAt }) {
    const said = !run.exact && startedAt > doneAt && startedAt > run.floor && startedAt < run.at;
    run.startedAt = startedAt;
    run.from = said ? startedAt : run.at;
    if (run.span) Object.assign(run.span, { from: run.from, early: !said && !run.exact });
  },
  end(item, at, unseen) {
    const { run } = item, to = Math.max(at, run.from);
    item.ran += to - run.from;
    item.whole &&= run.exact && !unseen;
    Object.assign(item, { run: null, cut: unseen ? run : null });
    if (!unseen) Object.assign(this, { worked: item, workedAt: to });
    if (run.span) Object.assign(run.span, { to, cut: unseen });
  },
  state(item) { return item.run ? "running" : item.done ? "done" : own(this.times?.stale, item.name) ? "stale" : "open"; },
  /** Those that took its tick from an item: they were done after it. */
  newer(item) { return own(this.times?.stale, item.name) ?? []; },
  why(item, state) {
    const names = state === "stale" ? this.newer(item).map(name => this.items.get(name)?.label ?? visible(name)) : [];
    if (names.length) return `older than ${names.join(", ").replace(/, ([^,]*)$/, " and $1")}`;
    return state === "open" && item.ran && item.whole ? `ran ${lasting(item.ran)}, not done` : "";
  },
  /** The time up to which the checklist is known: while the connection is away it stands still. */
  now() {
    const live = current.list?.state === "live" && !this.blind;
    if (live) this.known = Date.now();
    return { now: this.known, live };
  },
  tick() {
    if (!this.since) return;
    const { now, live } = this.now();
    let done = 0, running = 0;
    for (const item of this.items.values()) {
      const state = this.state(item);
      done += item.done;
      running += state === "running";
      if (item.element.dataset.state !== state) {
        item.element.dataset.state = state;
        item.element.firstChild.setAttribute("aria-label", state);
      }
      say(item.word, this.word(item, state, now));
      say(item.why, this.why(item, state));
      const about = item.doneAt ? `Last done ${new Date(item.doneAt).toString().slice(0, 24)}` : "";
      if (item.element.title !== about) item.element.title = about;
    }
    say($("progress"), `${done} done${running ? `, ${running} running` : ""}${live ? "" : now ? `, as of ${clock(now)}` : ", as of earlier"}`);
  },
  /** When it was done, and how long it took or takes; what was not seen whole has no length. */
  word(item, state, now) {
    const { run, startedAt, doneAt, ran, whole, after } = item;
    if (state === "running") {
      const said = startedAt > doneAt && startedAt > now - MONTH && startedAt < now + CLOCKS, time = lasting(now - (said ? startedAt : run.from));
      return said || run.exact ? `running ${time}` : time.startsWith("<") ? "running" : `running > ${time}`;
    }
    if (state === "stale") return "stale";
    if (state === "open" || !doneAt) return "";
    const took = startedAt && startedAt > doneAt - MONTH ? doneAt - startedAt : (whole && after !== doneAt && ran) || -1;
    return `${day(doneAt) === day(Date.now()) ? clock(doneAt) : day(doneAt)}${took < 0 ? "" : ` · ${lasting(took)}`}`;
  },
  busy() { return [...this.items.values()].some(item => item.run); },
};

// --- the timeline ----------------------------------------------------------------------------------------------------

/** A picture of what the checklist did while this page looked: a bar while a step was locked, a ring where it was ticked. */
const timeline = {
  spans: [], marks: [], asked: false,

  clear() {
    this.spans = [];
    this.marks = [];
    this.ask();
  },
  /** `then`: when it was done, or its tick was lost; 0 where only that is known: `at` this page was told. */
  mark(item, at, then) {
    this.marks.push({ item, at, done: item.done, then });
    if (this.marks.length > SPANS) this.marks.shift();
  },
  /** A bar: `early` where it may have begun before, `cut` where it may have gone on. */
  begin(item) {
    const span = { item, from: 0, to: 0, early: false, cut: false };
    if (this.spans.push(span) > SPANS) this.spans.splice(this.spans.findIndex(old => old.to), 1);
    return span;
  },
  ask() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => { this.asked = false; this.draw(); });
  },
  draw() {
    const steps = [...new Set([...this.spans, ...this.marks].sort((one, other) => (one.from ?? one.at) - (other.from ?? other.at)).map(one => one.item))];
    const { now } = checks.now();
    const from = Math.min(now - 10000, ...this.spans.map(span => span.from), ...this.marks.map(mark => mark.at));
    const to = Math.max(checks.busy() ? now : from + 10000, ...this.spans.map(span => span.to || now), ...this.marks.map(mark => mark.at));
    say($("timeline-note"), steps.length ? `${count(steps.length, "step")} seen, ${between(from, to).join(" to ")}` : "nothing seen yet");
    this.words(steps);
    if (!steps.length || !$("timeline").open) { $("picture").replaceChildren(); return; }
    const width = Math.max(200, $("picture").clientWidth - 32), left = width < 480 ? 104 : 126, right = 10;
    const x = at => left + (at - from) / (to - from) * (width - left - right);
    const height = 17 * steps.length + 18;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": $("timeline-note").textContent });
    this.axis(picture, from, to, x, height);
    steps.forEach((item, row) => this.step(picture, item, 17 * row, x, now));
    const end = $("picture").scrollHeight - $("picture").scrollTop - $("picture").clientHeight < 20;
    $("picture").replaceChildren(picture);
    if (end) $("picture").scrollTop = $("picture").scrollHeight;  // the newest steps are the lowest
  },
  axis(picture, from, to, x, height) {
    const steps = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800].map(s => 1000 * s);
    const most = Math.max(2, Math.floor((x(to) - x(from)) / 90));
    const step = steps.find(ms => (to - from) / ms <= most) ?? DAY * Math.ceil((to - from) / DAY / most);
    const zone = MINUTE * new Date(to).getTimezoneOffset();  // lines at the hours and midnights of the reader
    for (let at = Math.ceil((from - zone) / step) * step + zone; at <= to; at += step) {
      picture.append(svg("line", { class: "axis", x1: x(at), x2: x(at), y1: 0, y2: height - 14 }));
      const anchor = x(to) - x(at) < 24 ? "end" : "middle";
      picture.append(svg("text", { x: x(at), y: height - 3, "text-anchor": anchor }, step < MINUTE ? clock(at) : clock(at) === "00:00:00" ? day(at) : clock(at).slice(0, 5)));
    }
  },
  step(picture, item, y, x, now) {
    picture.append(svg("text", { x: 0, y: y + 12 }, item.label.length > 18 ? `${item.label.slice(0, 17)}…` : item.label));
    for (const span of this.spans) {
      if (span.item !== item) continue;
      const end = span.to || now;
      picture.append(svg("rect", { class: `bar${span.to ? "" : " now"}${span.early || span.cut ? " part" : ""}`, x: x(span.from), y: y + 4, width: Math.max(2, x(end) - x(span.from)), height: 9, rx: 2.5 }));
    }
    for (const mark of this.marks) {
      if (mark.item === item) picture.append(svg("circle", { class: mark.done ? "tick" : "fall", cx: x(mark.at), cy: y + 8.5, r: 4 }));
    }
  },
  ran({ from, to, early, cut }) {
    const [begin, end] = between(from, to), earlier = early ? " or earlier" : "";
    return to ? `ran ${begin}${earlier} to ${end}${cut ? " or longer" : ""}` : `runs since ${begin}${earlier}`;
  },
  rang({ at, done, then }) { return `${!done ? "no longer done" : then ? "done" : "ticked"} at ${when(then || at)}`; },
  /** The same for who does not see it. */
  words(steps) {
    const lines = steps.map(item => {
      const spans = this.spans.filter(span => span.item === item).map(span => [span.to ? span.from : Infinity, this.ran(span)]);
      const marks = this.marks.filter(mark => mark.item === item).map(mark => [mark.at, this.rang(mark)]);
      const said = [...spans, ...marks].sort(([one], [other]) => one - other).slice(-8);
      return `${item.label}: ${said.map(([, text]) => text).join(", ")}`;
    });
    if (lines.join() === this.spoken) return;
    this.spoken = lines.join();
    $("timeline-text").replaceChildren(...lines.map(line => part("li", "", line)));
  },
};

// --- how the connections are -----------------------------------------------------------------------------------------

const current = { run: "", list: null, holes: 0, large: 0, seenHoles: 0, seenLarge: 0 };

const STATES = { none: "without a channel", live: "connected", connecting: "connecting", stale: "stale", waiting: "reconnecting", refused: "refused", stopped: "stopped" };

/** Not there, or trying to be again: only the first try of all is no loss. */
function lost({ state, attempt, missing }) {
  return ["stale", "waiting", "refused"].includes(state) || (state === "connecting" && (attempt > 0 || missing));
}

function badge(id, label, streams, messages, doubt) {
  const element = $(id), now = Date.now();
  const states = streams.map(stream => stream.state === "stopped" ? "connecting" : stream.state);
  const state = streams.length ? ["stale", "waiting", "connecting", "refused"].find(name => states.includes(name)) ?? "live" : "none";
  const live = states.filter(name => name === "live").length, missing = streams.some(stream => stream.missing);
  element.dataset.state = state;
  element.toggleAttribute("data-missing", missing);
  const partly = live && live < streams.length && state !== "live" ? ` (${live} of ${streams.length} connected)` : "";
  say(element.firstChild, `${label} ${STATES[state]}${partly}${missing && state === "live" ? `, ${doubt}` : ""}`);
  const retry = Math.min(...streams.filter(stream => stream.retryAt > now).map(stream => stream.retryAt));
  const last = Math.max(0, ...streams.map(stream => stream.lastMessageAt));
  const wait = retry < Infinity ? `back in ${Math.ceil((retry - now) / 1000)} s` : "";
  say(element.lastChild, wait && state !== "live" ? wait : last ? `${messages} ${now - last < 1500 ? "just now" : `${lasting(now - last)} ago`}` : "");
  element.title = last ? `Last ${messages} at ${clock(last)}` : `No ${messages} yet`;
}

function notice() {
  const streams = [...log.channels.values()].map(channel => channel.stream), refused = streams.filter(stream => stream.state === "refused");
  const holes = current.holes - current.seenHoles, large = current.large - current.seenLarge;
  const words = [];
  const reason = [...refused, current.list].find(stream => stream?.state === "refused")?.closeReason;
  if (reason !== undefined) words.push(`The relay refuses ${refused.length === streams.length || !refused.length ? "this run" : refused.map(stream => visible(stream.channel)).join(", ")}: ${visible(reason || "no reason given")}.`);
  const strangers = [...streams, current.list].filter(stream => !stream.lastFrameAt && stream.closeReason && stream.state !== "refused");
  if (strangers.length) words.push(`${strange(strangers, streams)}: ${visible(strangers[0].closeReason)}.${address.query().has("token") ? "" : " Where it asks for a token, open this page with ?token=."}`);
  if (refused.some(stream => stream.missing)) words.push("Lines are missing since.");
  else if (holes) words.push(streams.some(stream => stream.missing) ? "Lines may be missing from here on, until the log is whole again." : `Lines may be missing: ${count(holes, "gap")}. The log is whole again since.`);
  if (large) words.push(`${count(large, "line")} larger than the relay forwards ${large === 1 ? "was" : "were"} left out.`);
  $("notice").hidden = !words.length;
  $("show-gap").hidden = $("seen-gap").hidden = !(holes || large);
  say($("notice").firstChild, words.join(" "));
}

/** Who of all has never been connected. */
function strange(strangers, streams) {
  const channels = strangers.filter(stream => stream !== current.list), list = strangers.includes(current.list);
  if (channels.length === streams.length) return `Not connected${list ? "" : " to the log"}`;
  const names = channels.slice(0, 5).map(stream => visible(stream.channel));
  if (channels.length > 5) names.push("others");
  return `Not connected to ${[...names, ...(list ? ["the checklist"] : [])].join(", ")}`;
}

function title() {
  const name = current.run ? visible(current.run) : "";
  const streams = current.list ? [current.list, ...[...log.channels.values()].map(channel => channel.stream)] : [];
  const over = checks.worked?.done && checks.worked.anew && !checks.blind && !checks.busy() && Date.now() - checks.workedAt > 3000;
  const failed = exceptions.list.some(item => !item.mended), all = streams.length && streams.every(lost);
  const mark = all ? "✗ no connection:" : failed ? "✗ failed:" : streams.some(lost) ? "○ reconnecting:" : over ? "✓ done" : log.unread ? `● ${log.unread}` : "●";
  const text = name ? `${mark} ${name} · WEPPcloud run` : "WEPPcloud run";
  if (document.title !== text) document.title = text;
}

function connections() {
  if (!current.list) return;
  badge("status-badge", "Log", [...log.channels.values()].map(channel => channel.stream), "line", "lines may be missing");
  badge("preflight-badge", "Checklist", [current.list], "change", "may be out of date");
  $("checks").classList.toggle("stale", current.list.state !== "live" || current.list.missing);
  for (const { chip, stream } of log.channels.values()) chip.dataset.state = stream.state;
  if (!$("empty").hidden) log.settle();
  notice();
  title();
}

let asked = 0;
/** Twenty streams change together: one look at them is enough. */
function askConnections() { asked ||= setTimeout(() => { asked = 0; connections(); }, 20); }

/** Start what waits for a handshake of its own, a few at once. */
function startMore() {
  const streams = [...log.channels.values()].map(channel => channel.stream);
  let room = AT_ONCE - streams.filter(stream => stream.state === "connecting").length;
  for (const stream of streams) if (stream.state === "stopped" && room-- > 0) stream.start();
}

function listen(channel) {
  const { stream } = channel, run = current.run;
  stream.addEventListener("state", () => {
    askConnections();
    if (run === current.run && stream.state !== "connecting") startMore();
  });
  stream.addEventListener("ready", askConnections);
  stream.addEventListener("gap", ({ detail }) => {
    if (detail.reason === "size") current.large++;
    else if (!(Date.now() - current.lastHole < TOGETHER && current.hole === detail.reason)) {
      current.holes++;
      current.hole = detail.reason;
    }
    if (detail.reason !== "size") current.lastHole = Date.now();
    askConnections();
  });
  stream.addEventListener("lines", ({ detail }) => {
    stream.lines.length = 0;  // kept here, by channel and size
    if (run === current.run && log.channels.get(channel.name) === channel && (detail.added.length || detail.dropped)) log.take(channel, detail);
  });
}

function open(name) {
  const channel = log.add(name);
  channel.stream = new StatusStream({ run: current.run, channel: name, token: address.query().get("token") ?? "", limit: KEPT, autostart: false });
  return channel;
}

function close() {
  current.list?.stop();
  Object.assign(current, { run: "", list: null, holes: 0, large: 0, seenHoles: 0, seenLarge: 0, lastHole: 0, hole: "" });
  log.end();
  exceptions.dismiss(...exceptions.list);
  checks.build();
  timeline.clear();
}

/** Watch the run of the address, or ask for one. */
function watch() {
  const run = address.run();
  close();
  const problem = run && wrongRun(run);
  $("run").value = run;
  complain("run", "wrong", problem);
  $("chooser").hidden = !!run && !problem;
  $("watched").hidden = $("badges").hidden = !run || !!problem;
  if (!run || problem) {
    say($("chooser-text"), "Type its id above. Its log and its checklist appear here as the run goes on.");
    recent.show();
    title();
    $("run").focus();
    return;
  }
  current.run = run;
  recent.add(run);
  $("empty-run").textContent = run;
  current.list = new ChecklistStream({ run, token: address.query().get("token") ?? "", autostart: false });
  const list = current.list;
  const show = () => { if (list === current.list && list.snapshot) checks.show(list.snapshot, list.times, list.missing); };
  for (const event of ["times", "snapshot", "ready"]) list.addEventListener(event, show);
  list.addEventListener("gap", ({ detail }) => { if (list === current.list) checks.lose(detail.since ?? 0); });
  for (const event of ["state", "gap", "ready"]) list.addEventListener(event, askConnections);
  list.start();
  const named = address.channels().map(name => [name, wrongChannel(name)]);
  complain("channel", "wrong-channel", named.find(([, problem]) => problem)?.[1] ?? "");
  named.filter(([, problem]) => !problem).forEach(([name]) => listen(open(name)));
  startMore();
  connections();
}

/** To the page of a run, as a step that the back button takes back. */
function go(run) {
  if (run !== address.run()) history.pushState(null, "", address.of(run));
  if (run !== current.run) watch();
  $("log").focus({ preventScroll: true });
}

/** Say at a field what is wrong with what is in it; "" takes it back. */
function complain(field, id, problem) {
  $(id).hidden = !problem;
  say($(id), problem);
  if (problem) $(id).scrollIntoView({ block: "nearest" });
  $(field).setAttribute("aria-invalid", String(!!problem));
}

// --- what the reader does ----------------------------------------------------------------------------------------------

$("choose").onsubmit = event => {
  event.preventDefault();
  const run = $("run").value.trim(), problem = wrongRun(run);
  complain("run", "wrong", problem);
  if (problem) $("run").focus();
  else go(run);
};
$("add").onsubmit = event => {
  event.preventDefault();
  const name = $("channel").value.trim(), problem = wrongChannel(name);
  complain("channel", "wrong-channel", problem);
  if (problem) return;
  $("channel").value = "";
  const known = log.channels.get(name);
  if (known) known.chip.hidden = false;
  else {
    listen(open(name));
    startMore();
    log.channels.get(name).chip.hidden = false;
    history.replaceState(null, "", address.of(current.run, { channels: [...log.channels.keys()].join(",") }));
  }
  connections();
  log.settle();
};
$("known").replaceChildren(...[...OTHER_CHANNELS, ...CHANNELS].sort().map(name => Object.assign(document.createElement("option"), { value: name })));
$("filter").oninput = () => log.find($("filter").value);
function unfilter() {
  $("filter").value = "";
  log.find("");
  $("log").focus({ preventScroll: true });
}
$("filter").onkeydown = event => {
  if (event.key !== "Escape") return;
  event.preventDefault();
  unfilter();
};
$("pause").onclick = () => log.pause(!log.paused);
$("copy").onclick = () => log.copy();
$("download").onclick = () => log.download();
$("clear").onclick = () => log.clear();
$("jump").onclick = () => log.jump();
$("exceptions").addEventListener("click", event => {  // the button that was pressed has gone
  if (!event.target.isConnected || $("exceptions").hidden) ($("exception-list").querySelector("button") ?? $("log")).focus({ preventScroll: true });
});
$("dismiss-all").onclick = () => exceptions.dismiss(...exceptions.list);
$("show-gap").onclick = () => { if (!log.gap || !log.show(log.gap)) $("show-gap").hidden = true; };
$("seen-gap").onclick = () => { Object.assign(current, { seenHoles: current.holes, seenLarge: current.large }); notice(); };
$("log").addEventListener("scroll", () => log.scrolled(), { passive: true });
$("timeline").ontoggle = () => timeline.ask();
addEventListener("resize", () => { log.resized = performance.now(); });
sizes.observe($("log"));
new ResizeObserver(() => timeline.ask()).observe($("timeline"));
addEventListener("keydown", event => {
  if (event.key === "Escape" && $("filter").value && !event.target.closest("input")) unfilter();
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea") || $("watched").hidden) return;
  event.preventDefault();
  $("filter").focus();
  $("filter").select();
});
addEventListener("popstate", watch);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  log.unread = 0;
  title();
});
setInterval(() => {
  connections();
  checks.tick();
  if (checks.busy() && !document.hidden) timeline.ask();
}, 1000);

$("timeline").open = WIDE.matches;
if (address.query().has("run") || location.hash.length > 1) history.replaceState(null, "", wrongRun(address.run()) ? location.href : address.of(address.run()));
watch();
