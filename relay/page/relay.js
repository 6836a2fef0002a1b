/**
 * The relay in a web page: live logs and checklists of WEPPcloud runs, in one file without dependencies.
 *
 *     <script type="module" src="http://relay-host:9002/relay.js"></script>
 *     <relay-log run="my-run" channel="wepp"></relay-log>
 *
 * or, without the elements:
 *
 *     import { StatusStream } from "http://relay-host:9002/relay.js";
 *     const stream = new StatusStream({ run: "my-run", channel: "wepp" });
 *     stream.addEventListener("trigger", ({ detail }) => console.log(detail.event));
 *
 * What goes over the wire is docs/protocol.md; how to use this is docs/browser.md; the types are in relay.d.ts.
 *
 * @module
 */

const SILENCE = 30_000; // ms: three missed pings, and the connection is taken for dead
const LASTED = 10_000; // ms after which a connection counts as one that works, and delays begin anew
const DELAYS = { first: 1_000, most: 15_000 }; // ms between tries: random below a bound that doubles from first to most
const SLOW_DELAYS = { first: 15_000, most: 300_000 }; // where the relay has refused: 1008
const LONGEST_LINE = 20_000; // characters kept of one line; a megabyte in one text node stops a tab
const HIDDEN_PAUSE = 250; // ms between two looks at what has come while nothing is drawn
const BLOCK = 100; // rows of an element that are laid out together
const NAMES = { run: /^(?!__|\.+$)[A-Za-z0-9_.;-]{1,200}$/, channel: /^[A-Za-z0-9_.-]{1,200}$/ };
const PORTS = { status: 9002, preflight: 9001 };

/**
 * Where a service is: `url` if given, else what the page says on its `<html>` (`data-status-url`, or
 * `data-status-port` on the page's own host), else the default port on the host that this module came from.
 *
 * @param {"status" | "preflight"} service
 * @param {{ url?: string, document?: Document }} [options] `url` may be `ws:`, `http:`, or a path on the page's host
 * @returns {string} a base such as `ws://host:9002`, without a slash at its end
 * @throws {TypeError} when `url` is none
 */
export function serviceUrl(service, { url = "", document = globalThis.document } = {}) {
  const { [`${service}Url`]: stated, [`${service}Port`]: port } = document?.documentElement.dataset ?? {};
  const page = new URL(document?.baseURI ?? import.meta.url);
  const given = url || stated;
  const base = new URL(given || (port ? page : import.meta.url), page);
  if (!given) Object.assign(base, { port: port || PORTS[service], pathname: "" });
  const scheme = base.protocol.replace(/^http/, "ws");
  return `${scheme}//${base.host || "localhost"}${base.pathname}`.replace(/\/+$/, "");
}

/**
 * What a line says of a job of RQ: `rq:<id> STARTED f(args)`, `... COMPLETED ...`, `... EXCEPTION ...`,
 * `rq:<id> TRIGGER   <channel> <EVENT>`.
 *
 * @param {string} text
 * @returns {import("./relay").Parsed} `{ kind: "line" }` for every other line
 */
export function parseLine(text) {
  const [, job, word, rest] = /^rq:(\S+) +(STARTED|COMPLETED|EXCEPTION|TRIGGER)(?!\S)\s*(.*)$/s.exec(text) ?? [];
  if (word === "TRIGGER") {
    const [, channel, event] = /^(\S+)\s+(\S+)/.exec(rest) ?? [];
    return event ? { kind: "trigger", job, channel, event } : { kind: "line" };
  }
  return word ? { kind: /** @type {any} */ (word.toLowerCase()), job, rest } : { kind: "line" };
}

/** @type {Record<string, string>} */
const MARKS = {
  "\u00ad": "SHY", "\u061c": "ALM", "\u200b": "ZWSP", "\u200c": "ZWNJ", "\u200d": "ZWJ", "\u200e": "LRM", "\u200f": "RLM",
  "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO", "\u2060": "WJ", "\u2066": "LRI",
  "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI", "\ufeff": "BOM",
};
// All that is not seen (Unicode, 5.21), but for what makes one emoji of several characters.
const INVISIBLE = /(?![\t\n\ufe0e\ufe0f]|\u200d\p{ExtPict})[\p{Cc}\p{DI}]/u;
const EVERY_INVISIBLE = new RegExp(INVISIBLE, "gu");
const SGR = /\x1b\[([\d;]*)m/;
// Eight colours and their bright ones, legible on light and on dark ground; a page may set --relay-ansi-0 to -15.
const PALETTE = [
  "#6b7280", "#c93c37", "#2b8a3e", "#a87400", "#2f6fd0", "#a145b5", "#0b8793", "#858c96",
  "#7d8590", "#e5534b", "#329a49", "#b58423", "#4686df", "#bb66cc", "#1f97a3", "#858c96",
];
const GROUNDS = Object.assign([...PALETTE], { 0: "#000000", 7: "#d0d4d9", 15: "#ffffff" });
// What a level of 0 to 255 is as an amount of light, of 1 (IEC 61966-2-1).
const LINEAR = Array.from({ length: 256 }, (_, level) => (level > 10 ? ((level / 255 + 0.055) / 1.055) ** 2.4 : level / 255 / 12.92));
const LEGIBLE = { least: 0.13, most: 0.28 }; // luminance: 3:1 from white as well as from black grounds

/**
 * A line with the colours of a terminal, in parts of one style each, and nothing in it that acts unseen: control
 * characters and other escape sequences become symbols (`␛`, `␇`), those of no width and marks that turn the reading
 * direction their names.
 *
 * @param {string} text
 * @returns {import("./relay").Part[]} to be shown as text; colours are CSS colours
 */
export function ansi(text) {
  if (!INVISIBLE.test(text)) return [{ text, style: {} }];
  /** @type {import("./relay").Part[]} */
  const parts = [];
  let style = {};
  text.replaceAll("\r\n", "\n").split(SGR).forEach((piece, index) => {
    if (index % 2) style = styled(style, piece);
    else if (piece) parts.push({ text: piece.replace(EVERY_INVISIBLE, symbol), style: legible(style) });
  });
  return parts;
}

/** @param {string} character */
function symbol(character) {
  const code = character.codePointAt(0) ?? 0;
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code < 0xa0) return code === 0x7f ? "\u2421" : "\u241a";
  return `‹${MARKS[character] ?? `U+${code.toString(16).toUpperCase().padStart(4, "0")}`}›`;
}

/**
 * A colour as a terminal has it: one of sixteen that have names, or its levels of red, green and blue.
 *
 * @typedef {number | number[]} Colour
 * @typedef {Omit<import("./relay").Style, "fg" | "bg"> & { fg?: Colour, bg?: Colour, inverse?: boolean }} Sgr
 */

/**
 * A style after one SGR sequence (ECMA-48, 8.3.117).
 *
 * @param {Sgr} style
 * @param {string} parameters
 * @returns {Sgr}
 */
function styled(style, parameters) {
  const codes = parameters.split(";").map(Number);
  let next = { ...style };
  for (let code; (code = codes.shift()) !== undefined; ) {
    if (code === 0) next = {};
    else if (code === 1) next.bold = true;
    else if (code === 2) next.dim = true;
    else if (code === 3) next.italic = true;
    else if (code === 4) next.underline = true;
    else if (code === 7) next.inverse = true;
    else if (code === 22) next.bold = next.dim = false;
    else if (code === 23) next.italic = false;
    else if (code === 24) next.underline = false;
    else if (code === 27) next.inverse = false;
    else if (code === 38) next.fg = extended(codes) ?? next.fg;
    else if (code === 39) next.fg = undefined;
    else if (code === 48) next.bg = extended(codes) ?? next.bg;
    else if (code === 49) next.bg = undefined;
    else if (code >= 30 && code <= 37) next.fg = code - 30;
    else if (code >= 40 && code <= 47) next.bg = code - 40;
    else if (code >= 90 && code <= 97) next.fg = code - 82;
    else if (code >= 100 && code <= 107) next.bg = code - 92;
  }
  return next;
}

/**
 * The colour behind a 38 or 48, whose parameters are taken off `codes`.
 *
 * @param {number[]} codes
 * @returns {Colour | undefined}
 */
function extended(codes) {
  const kind = codes.shift();
  if (kind === 5) return indexed(codes.shift() ?? NaN);
  const levels = kind === 2 ? codes.splice(0, 3) : [];
  return levels.length === 3 && levels.every(level => level <= 255) ? levels : undefined;
}

/**
 * One of the 256 colours: sixteen named ones, a cube of 6 x 6 x 6, and 24 greys.
 *
 * @param {number} index
 * @returns {Colour | undefined}
 */
function indexed(index) {
  if (!(index <= 255)) return undefined;
  if (index < 16) return index;
  if (index >= 232) return [0, 0, 0].map(() => 8 + 10 * (index - 232));
  const level = (/** @type {number} */ step) => (step ? 55 + 40 * step : 0);
  return [36, 6, 1].map(step => level(Math.trunc((index - 16) / step) % 6));
}

/**
 * A style as it is shown. Text on a ground of its own has nothing from the page's palette: where the two are too near
 * (WCAG 2.2, 1.4.3) it is black or white.
 *
 * @param {Sgr} style
 * @returns {import("./relay").Style}
 */
function legible({ inverse, fg, bg, ...style }) {
  if (inverse) [fg, bg] = [bg, fg ?? 7];
  const shown = { ...style, fg: fg === undefined ? "" : alone(fg), bg: "" };
  if (bg !== undefined) {
    const ground = luminance(levels(bg, GROUNDS));
    const text = fg === undefined ? ground : luminance(levels(fg));
    const apart = (Math.max(ground, text) + 0.05) / (Math.min(ground, text) + 0.05) >= 4.5;
    shown.fg = apart ? css(levels(fg ?? 0)) : ground > 0.179 ? "#000" : "#fff";
    shown.bg = css(levels(bg, GROUNDS));
  }
  return Object.fromEntries(Object.entries(shown).filter(([, value]) => value));
}

/**
 * A colour on the ground of the page, which may be light or dark.
 *
 * @param {Colour} colour
 */
function alone(colour) {
  if (typeof colour === "number") return `var(--relay-ansi-${colour}, ${PALETTE[colour]})`;
  const had = luminance(colour);
  const wanted = Math.min(LEGIBLE.most, Math.max(LEGIBLE.least, had));
  if (wanted === had) return css(colour);
  const light = colour.map(level => LINEAR[level]);
  const mixed = light.map(level => (wanted < had ? (level * wanted) / had : level + ((1 - level) * (wanted - had)) / (1 - had)));
  return css(mixed.map(level => 255 * (1.055 * level ** (1 / 2.4) - 0.055)));
}

/** @param {Colour} colour */
function levels(colour, named = PALETTE) {
  return typeof colour === "number" ? [1, 3, 5].map(at => parseInt(named[colour].slice(at, at + 2), 16)) : colour;
}

/** @param {number[]} levels */
function luminance([red, green, blue]) {
  return 0.2126 * LINEAR[red] + 0.7152 * LINEAR[green] + 0.0722 * LINEAR[blue];
}

/** @param {number[]} levels */
function css(levels) {
  return `rgb(${levels.map(level => Math.max(0, Math.round(level))).join(" ")})`;
}

/**
 * Calls once per animation frame at most, however often it is asked; by a timer while the page draws none.
 *
 * After each frame it rests for as long as that took to draw: a page that only draws takes nothing from its websocket,
 * which the relay closes then as too slow (1013).
 */
class Frame {
  #asked = false;
  #resting = false;
  #request = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** @param {() => void} callback */
  constructor(callback) {
    this.callback = callback;
  }

  ask() {
    if (this.#asked) return;
    this.#asked = true;
    if (!this.#resting) this.#schedule();
  }

  #schedule() {
    const drawing = "requestAnimationFrame" in globalThis && !document.hidden;
    if (drawing) this.#request = requestAnimationFrame(() => this.#run());
    // A tab that is hidden after the request draws no frame: the timer is behind it in any case.
    this.#timer = setTimeout(() => this.#run(), drawing ? 4 * HIDDEN_PAUSE : HIDDEN_PAUSE);
  }

  #run() {
    if (this.#request) cancelAnimationFrame(this.#request);
    clearTimeout(this.#timer);
    this.#asked = false;
    this.#resting = true;
    const began = performance.now();
    this.callback();
    setTimeout(() => setTimeout(() => this.#rested(), performance.now() - began)); // a timer comes after the drawing
  }

  #rested() {
    this.#resting = false;
    if (this.#asked) this.#schedule();
  }
}

/**
 * A websocket that stays: it comes back by the rules of docs/protocol.md, answers pings, and says how it is.
 *
 * Events: `state` whenever `state` has changed, `gap` where messages may be missing, `ready` when from here on none are.
 */
class Stream extends EventTarget {
  /** @type {import("./relay").State} */
  state = "stopped";
  /** When the next try is, in ms since 1970; 0 where none is due. */
  retryAt = 0;
  /** Tries since a connection last held for ten seconds. */
  attempt = 0;
  /** When anything last came, a ping too; ms since 1970. */
  lastFrameAt = 0;
  /** When a message last came; ms since 1970. */
  lastMessageAt = 0;
  /** The code of the last close; 0: there was none. */
  closeCode = 0;
  /** Why the last connection ended, in words; may be empty. */
  closeReason = "";
  /** How many holes there were: of the relay's own link, and connections that were lost. */
  gaps = 0;
  /** Whether messages may be missing right now: from a gap or a lost connection until the next `ready`. */
  missing = false;

  /**
   * Of the protocol, as it is asked for: `?v=2`.
   *
   * @protected
   */
  version = "2";

  /** @type {WebSocket | null} */
  #socket = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  // By a clock that nobody sets: when this connection was opened, 0 before that, and when anything last came by it.
  #openedAt = 0;
  #heardAt = 0;
  #slow = false;
  #running = false;
  /** @type {typeof WebSocket} */
  #WebSocket;
  #wake = () => {
    if (!globalThis.document?.hidden && ["waiting", "stale"].includes(this.state)) this.reconnect();
  };

  /** @param {import("./relay").StreamOptions} options */
  constructor({ url = "", token = "", WebSocket = globalThis.WebSocket }) {
    super();
    /** Where the service is, see serviceUrl; a change counts from the next connection on. */
    this.url = url;
    /** The permission that goes along; a change counts from the next connection on. */
    this.token = token;
    this.#WebSocket = WebSocket;
  }

  /** Connect, unless it does already. The first event comes when the caller has had time to listen. */
  start() {
    if (this.#running) return;
    this.#running = true;
    globalThis.addEventListener?.("online", this.#wake);
    globalThis.document?.addEventListener("visibilitychange", this.#wake);
    this.#set("connecting");
    queueMicrotask(() => {
      if (this.#running && !this.#socket) this.#connect();
    });
  }

  /** Close, and stay closed until `start`. */
  stop() {
    if (!this.#running) return;
    this.#running = false;
    globalThis.removeEventListener?.("online", this.#wake);
    globalThis.document?.removeEventListener("visibilitychange", this.#wake);
    this.#drop();
    this.attempt = this.retryAt = 0;
    this.#set("stopped");
  }

  /** Try now instead of after the wait, also where the relay has refused; nothing where a connection stands or begins. */
  reconnect() {
    if (this.#socket) return;
    this.attempt = 0;
    this.#slow = false;
    if (this.#running) this.#connect();
    else this.start();
  }

  /**
   * The path below the service, from names that have been looked at.
   *
   * @protected
   * @returns {string}
   */
  path() {
    throw new Error("a subclass says it");
  }

  /**
   * A frame that is neither ping, ready nor gap.
   *
   * @protected
   * @param {any} _frame
   */
  receive(_frame) {}

  /**
   * A hole, before its event.
   *
   * @protected
   * @param {{ reason: import("./relay").GapReason, since: number | null }} _gap
   */
  hole(_gap) {}

  #connect() {
    this.#drop();
    this.retryAt = this.#openedAt = 0;
    try {
      const query = new URLSearchParams({ v: this.version, ...(this.token && { token: this.token }) });
      this.#socket = this.#open(`${this.path()}?${query}`);
    } catch (error) {
      this.#refuse(0, /** @type {Error} */ (error).message);
      return;
    }
    this.#watch(SILENCE);
    if (this.state !== "connecting") this.#set("connecting");
  }

  /** @param {string} address */
  #open(address) {
    const socket = new this.#WebSocket(address);
    socket.onopen = () => {
      this.lastFrameAt = Date.now();
      this.#openedAt = this.#heardAt = performance.now();
      this.#set("live");
    };
    socket.onmessage = ({ data }) => this.#take(data);
    socket.onclose = ({ code, reason }) => this.#lost(code, reason);
    return socket;
  }

  /** @param {unknown} data */
  #take(data) {
    this.lastFrameAt = Date.now();
    this.#heardAt = performance.now();
    if (this.attempt && this.#heardAt - this.#openedAt >= LASTED) {
      this.attempt = 0;
      this.#slow = false;
    }
    let frame;
    try {
      frame = JSON.parse(/** @type {string} */ (data));
    } catch {
      return;
    }
    switch (frame?.type) {
      case "ping":
        return this.#socket?.send('{"type":"pong"}');
      case "ready":
        return this.#ready();
      case "gap":
        return this.#gap(frame.reason, frame.since === undefined ? null : frame.since * 1000);
      case undefined:
        return;
      default:
        this.receive(frame);
    }
  }

  #ready() {
    const missed = this.missing;
    this.missing = false;
    this.#tell("ready", { missed });
  }

  /**
   * @param {import("./relay").GapReason} reason
   * @param {number | null} since
   */
  #gap(reason, since) {
    this.gaps += 1;
    if (reason !== "size") this.missing = true;
    this.hole({ reason, since });
    this.#tell("gap", { reason, since });
  }

  /** Look again after `wait` whether anything has come: one timer for a connection, not one for each message. */
  #watch(/** @type {number} */ wait) {
    this.#timer = setTimeout(() => {
      const rest = this.#heardAt + SILENCE - performance.now();
      if (this.#openedAt && rest > 0) this.#watch(rest);
      else this.#lost(1006, this.#openedAt ? "nothing came for 30 s" : "no answer for 30 s", this.#openedAt ? "stale" : "waiting");
    }, wait);
  }

  /**
   * @param {number} code
   * @param {string} reason
   * @param {import("./relay").State} state
   */
  #lost(code, reason, state = "waiting") {
    const opened = this.#openedAt > 0;
    this.#drop();
    if (opened) this.#gap(code === 1013 ? "slow" : "connection", this.lastFrameAt);
    if ([1002, 1007, 1009].includes(code) || (code === 1008 && reason.includes("permission"))) {
      return this.#refuse(code, reason);
    }
    if (code === 1008) this.#slow = true;
    const { first, most } = this.#slow ? SLOW_DELAYS : DELAYS;
    const wait = Math.random() * Math.min(most, first * 2 ** this.attempt);
    this.attempt += 1;
    this.retryAt = Date.now() + wait;
    this.#timer = setTimeout(() => this.#connect(), wait);
    this.closeCode = code;
    this.closeReason = reason || (opened ? "" : "no answer, or the relay does not let this page in");
    this.#set(code === 1008 && reason.includes("does not permit") ? "refused" : state);
  }

  /**
   * Coming back alone would not help.
   *
   * @param {number} code
   * @param {string} reason
   */
  #refuse(code, reason) {
    this.closeCode = code;
    this.closeReason = reason;
    this.#set("refused");
  }

  /** Let go of the connection and of what is due; nothing it still says is heard. */
  #drop() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  /** @param {import("./relay").State} state */
  #set(state) {
    this.state = state;
    this.#tell("state", { state, retryAt: this.retryAt, code: this.closeCode, reason: this.closeReason });
  }

  /**
   * @param {string} type
   * @param {unknown} detail
   */
  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/**
 * A name as a part of a path.
 *
 * @param {"run" | "channel"} kind
 * @param {unknown} name
 */
function segment(kind, name) {
  if (typeof name === "string" && NAMES[kind].test(name)) return encodeURIComponent(name);
  throw new TypeError(name ? `no ${kind} has such a name` : `no ${kind} is named`);
}

/**
 * The log of one channel of a run.
 *
 * Events, beside those of every stream: `lines` (`{ added, dropped }`) once per animation frame at most; `trigger`
 * (`{ job, channel, event, line }`) and `exception` (`{ job, text, line }`) at once, also in a hidden tab.
 */
export class StatusStream extends Stream {
  /**
   * The newest lines, oldest first, `limit` at most; the array stays the same one.
   *
   * @type {import("./relay").Line[]}
   */
  lines = [];
  /** How many lines have been dropped for newer ones. */
  dropped = 0;

  /** @type {import("./relay").Line[]} */
  #pending = [];
  #told = 0;
  #number = 0;
  #frame = new Frame(() => this.#flush());

  /** @param {import("./relay").StatusOptions} options */
  constructor({ run, channel, limit = 3000, autostart = true, ...options }) {
    super(options);
    this.run = run;
    this.channel = channel;
    this.limit = Math.max(1, Math.trunc(limit) || 3000);
    if (autostart) this.start();
  }

  /** Forget all lines. */
  clear() {
    this.#pending = [];
    this.lines.length = 0;
    this.#frame.ask();
  }

  path() {
    return `${serviceUrl("status", this)}/${segment("run", this.run)}:${segment("channel", this.channel)}`;
  }

  /** @param {any} frame */
  receive({ type, data }) {
    if (type !== "status") return;
    this.lastMessageAt = Date.now();
    const text = shortened(String(data));
    const { rest = "", ...parsed } = parseLine(text);
    const line = this.#add({ text, ...parsed });
    if (line.kind !== "trigger" && line.kind !== "exception") return;
    const { kind, job, channel, event } = line;
    const detail = kind === "trigger" ? { job, channel, event, line } : { job, text: rest, line };
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  /** @param {{ reason: import("./relay").GapReason }} gap */
  hole({ reason }) {
    const what = { __proto__: null, link: "the relay lost Redis", size: "a message was too large", slow: "this page was too slow" };
    this.#add({ kind: "gap", text: `Lines may be missing here: ${what[/** @type {"link"} */ (reason)] ?? "the connection was lost"}.` });
  }

  /** @param {Omit<import("./relay").Line, "n" | "at">} line */
  #add(line) {
    const added = { n: ++this.#number, at: Date.now(), ...line };
    this.#pending.push(added);
    if (this.#pending.length >= 2 * this.limit) this.#trim(this.#pending); // a hidden tab may not look for a minute
    this.#frame.ask();
    return added;
  }

  /** @param {unknown[]} lines */
  #trim(lines) {
    const excess = lines.length - this.limit;
    if (excess > 0) lines.splice(0, excess);
    this.dropped += Math.max(0, excess);
  }

  #flush() {
    const added = this.#pending;
    this.#pending = [];
    this.#trim(added);
    for (const line of added) this.lines.push(line);
    this.#trim(this.lines);
    const dropped = this.dropped - this.#told;
    this.#told = this.dropped;
    this.dispatchEvent(new CustomEvent("lines", { detail: { added, dropped } }));
  }
}

/**
 * A text of bearable length, with what it had said behind it.
 *
 * @param {string} text
 */
function shortened(text) {
  if (text.length <= LONGEST_LINE) return text;
  const size = text.length < 1e6 ? `${Math.round(text.length / 1e3)} kB` : `${(text.length / 1e6).toFixed(1)} MB`;
  // A slice of a string keeps the whole of it in memory, in V8 at least; one that was parsed does not.
  return `${JSON.parse(JSON.stringify(text.slice(0, LONGEST_LINE)))}… ${size}`;
}

/**
 * The checklist of one run.
 *
 * Events, beside those of every stream, once per animation frame at most: `times` (`{ times }`) and then `snapshot` (the
 * snapshot), each where it has changed.
 */
export class ChecklistStream extends Stream {
  /**
   * The newest state of the run; null until the first came.
   *
   * @type {import("./relay").Snapshot | null}
   */
  snapshot = null;
  /**
   * When the steps of the run were done, and why they are no longer; null until it came, which it does before the first
   * snapshot.
   *
   * @type {import("./relay").Times | null}
   */
  times = null;

  version = "3";

  #changed = new Set();
  #frame = new Frame(() => {
    for (const [type, detail] of Object.entries({ times: { times: this.times }, snapshot: this.snapshot }))
      if (this.#changed.delete(type)) this.dispatchEvent(new CustomEvent(type, { detail }));
  });

  /** @param {import("./relay").ChecklistOptions} options */
  constructor({ run, autostart = true, ...options }) {
    super(options);
    this.run = run;
    if (autostart) this.start();
  }

  path() {
    return `${serviceUrl("preflight", this)}/${segment("run", this.run)}`;
  }

  /** @param {any} frame */
  receive(frame) {
    if (frame.type === "times") this.times = frame;
    else if (frame.type === "preflight") this.snapshot = frame;
    else return;
    this.lastMessageAt = Date.now();
    this.#changed.add(frame.type === "times" ? "times" : "snapshot");
    this.#frame.ask();
  }
}

const STYLE = `
:host {
  --ground: var(--relay-ground, #f8faf9); --ink: var(--relay-ink, #17211e); --soft: var(--relay-soft, #5c6b66);
  --edge: var(--relay-edge, #dfe5e2); --accent: var(--relay-accent, #0e7468); --accent-ink: var(--relay-accent-ink, #fff);
  --good: var(--relay-good, #14804a); --busy: var(--relay-busy, #96520a); --bad: var(--relay-bad, #c0312b);
  display: flex; flex-direction: column; position: relative; box-sizing: border-box; overflow: hidden; contain: content;
  border: 1px solid var(--edge); border-radius: 8px; background: var(--ground); color: var(--ink);
  font: 14px/1.5 var(--relay-font, system-ui, sans-serif);
}
@media (prefers-color-scheme: dark) {
  :host {
    --ground: var(--relay-ground, #101615); --ink: var(--relay-ink, #e2eae7); --soft: var(--relay-soft, #97a6a1);
    --edge: var(--relay-edge, #25302d); --accent: var(--relay-accent, #3cc3ae); --accent-ink: var(--relay-accent-ink, #06231e);
    --good: var(--relay-good, #52c98a); --busy: var(--relay-busy, #eda84c); --bad: var(--relay-bad, #f27970);
  }
}
:host(relay-log) { block-size: 24em; }
:host([hidden]), [hidden] { display: none; }
.note { flex: none; padding: 4px 12px; border-bottom: 1px solid var(--edge); color: var(--busy); font-size: 13px; }
.note.live:not(.missing) { color: var(--good); }
.note.refused { color: var(--bad); }
.note.stopped { color: var(--soft); }
.log { flex: 1; min-height: 0; overflow: auto; padding: 6px 0; overscroll-behavior: contain; font: 12.5px/1.6 var(--relay-mono, ui-monospace, monospace); }
.block { contain: content; content-visibility: auto; contain-intrinsic-size: auto ${BLOCK * 1.6}em; }
.block:last-child { content-visibility: visible; }
.line { display: flex; gap: 12px; padding: 0 12px; }
.time { flex: none; color: var(--soft); font-variant-numeric: tabular-nums; }
.text { flex: 1; min-width: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.text.long { max-block-size: 24em; overflow: auto; }
.started .text { color: var(--accent); }
.completed .text { color: var(--good); font-weight: 600; }
.exception .text { color: var(--bad); font-weight: 600; }
.trigger .text { color: var(--soft); }
.gap .text { color: var(--busy); font-style: italic; }
.jump {
  position: absolute; inset-block-end: 12px; inset-inline: 0; inline-size: max-content; margin-inline: auto; padding: 5px 14px;
  border: 0; border-radius: 99px; background: var(--accent); color: var(--accent-ink); font: inherit; font-weight: 600; cursor: pointer;
}
:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; }
.list { margin: 0; padding: 6px 12px; list-style: none; columns: 12em; overflow: auto; }
.list.stale { opacity: .5; }
.item { display: flex; gap: 8px; break-inside: avoid; color: var(--soft); }
.item.done { color: var(--ink); }
.item.locked { color: var(--busy); }
.mark { flex: none; inline-size: 1em; color: var(--good); }
.lock { font-size: 12px; }
`;

/** @type {CSSStyleSheet | undefined} */
let sheet;

/** One sheet for all elements of the page; a policy that forbids inline styles lets a constructed one in. */
function styleSheet() {
  if (!sheet) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
  }
  return sheet;
}

/**
 * An element whose class names are its parts too, so that a page may style it.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} names
 * @param {string} [text]
 */
function part(tag, names, text = "") {
  const element = document.createElement(tag);
  rename(element, names);
  if (text) element.textContent = text;
  return element;
}

/**
 * @param {HTMLElement} element
 * @param {string} names
 */
function rename(element, names) {
  element.className = names;
  element.setAttribute("part", names);
}

/** @param {number} at */
function clock(at) {
  return new Date(at).toTimeString().slice(0, 8);
}

/**
 * How a stream is, as a sentence.
 *
 * @param {Stream} stream
 * @param {string} doubt what to say of it where messages may be missing
 */
function sentence({ state, attempt, closeReason, missing }, doubt) {
  switch (state) {
    case "live":
      return missing ? `Live, but ${doubt}.` : "Live.";
    case "connecting":
      if (!attempt) return "Connecting …";
    // falls through: each try is no news
    case "waiting":
      return `Not connected${closeReason && `: ${closeReason}`}; trying again …`;
    case "stale":
      return "Nothing has come for 30 s; trying again …";
    case "refused":
      return `Not connected: ${closeReason}.`;
    default:
      return "Stopped.";
  }
}

/**
 * What both elements share: a stream for as long as it is in a document, another one where its attributes change, and a
 * line that says how it is. The events of the stream come from the element too, all but `lines`.
 */
class StreamElement extends (globalThis.HTMLElement ?? Object) {
  static observedAttributes = ["run", "channel", "url", "token", "limit"];

  /**
   * Null where it is in no document.
   *
   * @type {any}
   */
  stream = null;

  #asked = false;
  /** @type {string | null} */
  #watched = null;
  #shown = () => {
    if (this.stream) this.show();
  };

  constructor() {
    super();
    this.note = part("div", "note");
    this.note.setAttribute("role", "status");
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [styleSheet()];
    root.append(this.note);
  }

  connectedCallback() {
    document.addEventListener("visibilitychange", this.#shown);
    this.#ask();
  }

  disconnectedCallback() {
    document.removeEventListener("visibilitychange", this.#shown);
    this.#ask();
  }

  attributeChangedCallback() {
    this.#ask();
  }

  /** Several attributes that are set one after the other, or a move within the document, are one change at most. */
  #ask() {
    if (this.#asked) return;
    this.#asked = true;
    queueMicrotask(() => {
      this.#asked = false;
      this.#follow();
    });
  }

  #follow() {
    const options = Object.fromEntries(StreamElement.observedAttributes.map(name => [name, this.getAttribute(name) ?? ""]));
    const watched = this.isConnected ? JSON.stringify(options) : null;
    if (watched === this.#watched) return;
    this.#watched = watched;
    const last = this.stream;
    this.stream = null;
    last?.stop();
    this.reset();
    if (watched === null) return;
    const stream = (this.stream = this.open(options));
    for (const type of ["state", "gap", "ready", "trigger", "exception", "times", "snapshot", "lines"]) {
      stream.addEventListener(type, (/** @type {any} */ { detail }) => {
        if (stream !== this.stream) return;
        this.show();
        if (type !== "lines") this.dispatchEvent(new CustomEvent(type, { detail }));
      });
    }
    stream.start();
  }

  /** @param {string} text */
  say(text) {
    if (this.note.textContent !== text) this.note.textContent = text;
    rename(this.note, `note ${this.stream.state}${this.stream.missing ? " missing" : ""}`);
  }

  /**
   * The stream for these attributes, not started.
   *
   * @param {any} _options
   * @returns {any}
   */
  open(_options) {}
  /** Forget what is shown. */
  reset() {}
  /** Bring what is shown up to date. */
  show() {}
}

/**
 * `<relay-log run channel [url] [token] [limit]>`: the log of a channel, which follows its end unless the reader has
 * scrolled up. Parts: note, log, line (with its kind: started, completed, exception, trigger, gap), time, text, jump.
 */
export class RelayLog extends StreamElement {
  #log = part("div", "log");
  #rows = document.createElement("div");
  #jump = part("button", "jump");
  #newest = 0; // the number of the last line that has a row
  #unseen = 0;
  #following = true;
  #top = 0;

  constructor() {
    super();
    this.#log.tabIndex = 0;
    for (const [name, value] of [["role", "log"], ["aria-live", "polite"], ["aria-label", "Log"]]) this.#log.setAttribute(name, value);
    this.#log.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#jump.type = "button";
    this.#jump.hidden = true;
    this.#jump.addEventListener("click", () => this.#follow());
    this.#log.append(this.#rows);
    this.shadowRoot?.append(this.#log, this.#jump);
    const sizes = new ResizeObserver(() => {
      if (this.#following) this.#follow();
    });
    sizes.observe(this.#log);
    sizes.observe(this.#rows); // those that come into view may take another height than was thought
  }

  connectedCallback() {
    super.connectedCallback();
    if (this.#following) this.#follow(); // what moves within a document begins at its top
  }

  /** @param {any} options */
  open({ limit, ...options }) {
    return new StatusStream({ ...options, limit: Number(limit), autostart: false });
  }

  reset() {
    this.#rows.replaceChildren();
    this.#newest = 0;
    this.#follow();
  }

  /** The rows become those of the stream's lines; while nothing is drawn they wait there, `limit` at most. */
  show() {
    if (document.hidden) return;
    this.say(sentence(this.stream, "lines may be missing"));
    /** @type {import("./relay").Line[]} */
    const lines = this.stream.lines;
    const kept = lines.findLastIndex(line => line.n <= this.#newest) + 1;
    const rows = this.#rows.getElementsByClassName("line");
    const old = rows.length - kept;
    if (!old && kept === lines.length) return;
    if (!kept) this.#rows.replaceChildren();
    else if (old) this.#cut(rows[old]);
    this.#append(lines.slice(kept));
    this.#newest = lines.at(-1)?.n ?? this.#newest;
    this.#unseen += lines.length - kept;
    if (this.#following) this.#follow();
    else this.#count();
  }

  /** Let go of all rows before this one, at once. */
  #cut(/** @type {Element} */ first) {
    const range = new Range();
    range.setStart(this.#rows, 0);
    range.setEndBefore(first);
    range.deleteContents();
  }

  /**
   * Rows stand in blocks: with 3000 of them side by side a frame with one new line takes Chromium 60 ms, so 4, and what
   * is out of view is not laid out at all.
   */
  #append(/** @type {import("./relay").Line[]} */ lines) {
    const blocks = new DocumentFragment();
    let block = this.#rows.lastElementChild;
    for (const line of lines) {
      if (!block || block.childElementCount >= BLOCK) blocks.append((block = part("div", "block")));
      block.append(row(line));
    }
    this.#rows.append(blocks);
  }

  #follow() {
    this.#following = true;
    this.#unseen = 0;
    this.#log.scrollTop = this.#log.scrollHeight;
    this.#count();
  }

  /** Only the reader scrolls up; what is below the view may also grow while it is laid out. */
  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#log;
    if (scrollHeight - scrollTop - clientHeight < 24) this.#follow();
    else if (scrollTop < this.#top) this.#following = false;
    this.#top = scrollTop;
  }

  #count() {
    this.#jump.hidden = !this.#unseen;
    this.#jump.textContent = `${this.#unseen} new ${this.#unseen === 1 ? "line" : "lines"}`;
  }
}

/** @param {import("./relay").Line} line */
function row({ at, kind, text }) {
  const row = part("div", `line ${kind}`);
  const said = part("span", text.length > 2000 ? "text long" : "text");
  for (const { text: piece, style } of ansi(text)) said.append(Object.keys(style).length ? coloured(piece, style) : piece);
  row.append(part("span", "time", clock(at)), said);
  return row;
}

/**
 * @param {string} text
 * @param {import("./relay").Style} style
 */
function coloured(text, { fg, bg, bold, dim, italic, underline }) {
  const span = part("span", "", text);
  span.style.color = fg ?? "";
  span.style.backgroundColor = bg ?? "";
  span.style.fontWeight = bold ? "bold" : "";
  span.style.opacity = dim ? "0.7" : "";
  span.style.fontStyle = italic ? "italic" : "";
  span.style.textDecoration = underline ? "underline" : "";
  return span;
}

const LABELS = {
  __proto__: null, // a lock may be called "constructor"
  channels: "Channels", outlet: "Outlet", subcatchments: "Subcatchments", sbs_map: "Burn severity", landuse: "Land use",
  rangeland_cover: "Rangeland cover", soils: "Soils", climate: "Climate", rap_ts: "RAP series", openet_ts: "OpenET series",
  wepp: "WEPP", rhem: "RHEM", rusle: "RUSLE", geneva: "Geneva", roads: "Roads", observed: "Observed fit",
  debris: "Debris flow", watar: "Ash transport", omni_scenarios: "Omni scenarios", omni_contrasts: "Omni contrasts",
  run_path_ce: "Path cost", dss_export: "DSS export",
};

/**
 * `<relay-checklist run [url] [token]>`: the steps of a run, what is done and what is locked; paler while it is not live.
 * Parts: note, list (and stale), item (and done, locked), mark, label, lock.
 */
export class RelayChecklist extends StreamElement {
  #list = part("ul", "list");

  constructor() {
    super();
    this.shadowRoot?.append(this.#list);
  }

  /** @param {any} options */
  open({ run, url, token }) {
    return new ChecklistStream({ run, url, token, autostart: false });
  }

  reset() {
    this.#list.replaceChildren();
  }

  show() {
    if (document.hidden) return;
    /** @type {ChecklistStream} */
    const { snapshot, state, lastMessageAt } = this.stream;
    const current = state === "live" && !this.stream.missing;
    const age = current || !lastMessageAt ? "" : ` The last state is from ${clock(lastMessageAt)}.`;
    this.say(sentence(this.stream, "it may be out of date") + age);
    rename(this.#list, current ? "list" : "list stale");
    if (snapshot) this.#list.replaceChildren(...items(snapshot));
  }
}

/**
 * The items in the order of the work, with those that are not known here behind them, and locks of no item.
 *
 * @param {import("./relay").Snapshot} snapshot
 */
function items({ checklist = {}, lock_statuses: locks = {} }) {
  const locked = new Set(Object.keys(locks).filter(name => locks[name]).map(name => name.replace(/\.nodb$/, "")));
  const known = Object.keys(LABELS).filter(name => name in checklist);
  const names = new Set([...known, ...Object.keys(checklist), ...locked]);
  return [...names].map(name => {
    const done = checklist[name] === true;
    const item = part("li", `item${done ? " done" : ""}${locked.has(name) ? " locked" : ""}`);
    item.dataset.name = name;
    const mark = part("span", "mark", done ? "✓" : "·");
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", done ? "done" : "not done");
    item.append(mark, part("span", "label", LABELS[/** @type {"wepp"} */ (name)] ?? name));
    if (locked.has(name)) item.append(part("span", "lock", "locked"));
    return item;
  });
}

// A page may come by the module under two addresses, with a query and without one: the first to be run defines them.
for (const [name, element] of [["relay-log", RelayLog], ["relay-checklist", RelayChecklist]])
  if (globalThis.customElements && !customElements.get(name)) customElements.define(name, element);
