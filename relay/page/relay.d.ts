/** Types of relay.js, the relay's module for web pages. What each thing does is said there. */

export type State = "connecting" | "live" | "stale" | "waiting" | "stopped" | "refused";
/** `link`: the relay lost Redis; `size`: one message was too large; `slow`: this page was; `connection`: it was lost. */
export type GapReason = "link" | "size" | "slow" | "connection";
export type Kind = "line" | "started" | "completed" | "exception" | "trigger" | "gap";

export interface StreamOptions {
  /** Where the service is; see serviceUrl for what holds without it. */
  url?: string;
  /** A signed permission, where the relay asks for one. */
  token?: string;
  /** The class of websockets, for tests. */
  WebSocket?: typeof globalThis.WebSocket;
  /** Whether to connect at once; true. */
  autostart?: boolean;
}

export interface ChecklistOptions extends StreamOptions {
  run: string;
}

export interface StatusOptions extends StreamOptions {
  run: string;
  channel: string;
  /** How many lines are kept; 3000. */
  limit?: number;
}

export interface Line {
  /** A running number, from 1. */
  n: number;
  /** When it came, in ms since 1970. */
  at: number;
  /** As published; where that is longer than 20 000 characters, those and the size. Not made harmless: see ansi. */
  text: string;
  kind: Kind;
  /** The id of the RQ job, in `started`, `completed`, `exception` and `trigger`. */
  job?: string;
  /** The channel that a trigger is meant for. */
  channel?: string;
  /** The event that a trigger tells. */
  event?: string;
}

export interface Parsed {
  kind: Kind;
  job?: string;
  channel?: string;
  event?: string;
  /** What follows the word, in `started`, `completed` and `exception`. */
  rest?: string;
}

export interface Style {
  /** CSS colours. */
  fg?: string;
  bg?: string;
  bold?: boolean;
  dim?: boolean;
  italic?: boolean;
  underline?: boolean;
}

export interface Part {
  text: string;
  style: Style;
}

export interface Snapshot {
  type: "preflight";
  checklist: Record<string, boolean>;
  lock_statuses: Record<string, boolean>;
  /** Unix seconds; absent where unknown. */
  last_modified?: number;
}

/** Unix seconds, by the keys of the checklist. */
export interface Times {
  type: "times";
  /** When a step was last done, also where its tick is off now. */
  done: Record<string, number>;
  /** When its worker began: what it has done, or, where that is later than `done`, what it does or has failed at. */
  started: Record<string, number>;
  /** For each step that was done and whose tick is off, the steps that were done since; may be empty. */
  stale: Record<string, string[]>;
}

export interface StreamEvents {
  state: CustomEvent<{ state: State; retryAt: number; code: number; reason: string }>;
  /** `since`: ms since 1970, after which messages may be missing; null where the hole is this one place. */
  gap: CustomEvent<{ reason: GapReason; since: number | null }>;
  /** `missed`: whether there was a hole before it, so that the state of the run should be read again. */
  ready: CustomEvent<{ missed: boolean }>;
}

export interface StatusEvents extends StreamEvents {
  /** `dropped`: how many of the oldest have gone since the last such event. */
  lines: CustomEvent<{ added: Line[]; dropped: number }>;
  trigger: CustomEvent<{ job: string; channel: string; event: string; line: Line }>;
  exception: CustomEvent<{ job: string; text: string; line: Line }>;
}

export interface ChecklistEvents extends StreamEvents {
  /** Before the `snapshot` that it belongs to. */
  times: CustomEvent<{ times: Times }>;
  snapshot: CustomEvent<Snapshot>;
}

declare class Stream<Events> extends EventTarget {
  /** A change counts from the next connection on. */
  url: string;
  /** A change counts from the next connection on. */
  token: string;
  readonly state: State;
  /** When the next try is, in ms since 1970; 0 where none is due. */
  readonly retryAt: number;
  /** Tries since a connection last held for ten seconds. */
  readonly attempt: number;
  /** When anything last came, a ping too; ms since 1970. */
  readonly lastFrameAt: number;
  /** When a message last came; ms since 1970. */
  readonly lastMessageAt: number;
  /** The code of the last close; 0: there was none. */
  readonly closeCode: number;
  /** Why the last connection ended, in words; may be empty. */
  readonly closeReason: string;
  /** How many holes there were. */
  readonly gaps: number;
  /** Whether messages may be missing right now: from a gap or a lost connection until the next `ready`. */
  readonly missing: boolean;
  /** Connect, unless it does already. */
  start(): void;
  /** Close, and stay closed until `start`. */
  stop(): void;
  /** Try now instead of after the wait; nothing where a connection stands or begins. */
  reconnect(): void;
  addEventListener<Type extends keyof Events>(
    type: Type,
    listener: ((event: Events[Type]) => void) | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

export class StatusStream extends Stream<StatusEvents> {
  constructor(options: StatusOptions);
  readonly run: string;
  readonly channel: string;
  readonly limit: number;
  /** The newest lines, oldest first; the array stays the same one. */
  readonly lines: readonly Line[];
  /** How many lines have been dropped for newer ones. */
  readonly dropped: number;
  /** Forget all lines. */
  clear(): void;
}

export class ChecklistStream extends Stream<ChecklistEvents> {
  constructor(options: ChecklistOptions);
  readonly run: string;
  /** The newest state of the run; null until the first came. */
  readonly snapshot: Snapshot | null;
  /** When its steps were done, and why they are no longer; null until it came, which a relay that has it sends first. */
  readonly times: Times | null;
}

export function serviceUrl(
  service: "status" | "preflight",
  options?: { url?: string; document?: Document | undefined },
): string;
export function parseLine(text: string): Parsed;
export function ansi(text: string): Part[];

/** `<relay-log run channel [url] [token] [limit]>`; the events of its stream come from it too, all but `lines`. */
export class RelayLog extends HTMLElement {
  /** Null where it is in no document; another one after a change of attributes. */
  readonly stream: StatusStream | null;
}

/** `<relay-checklist run [url] [token]>`; the events of its stream come from it too. */
export class RelayChecklist extends HTMLElement {
  /** Null where it is in no document; another one after a change of attributes. */
  readonly stream: ChecklistStream | null;
}

declare global {
  interface HTMLElementTagNameMap {
    "relay-log": RelayLog;
    "relay-checklist": RelayChecklist;
  }
}
