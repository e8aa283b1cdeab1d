/** Keyboards and synthesizers through WebMIDI (https://www.w3.org/TR/webmidi/). */

import { ALL_NOTES_OFF, ALL_SOUND_OFF, RESET, SUSTAIN } from "../host/controllers";
import { HostError } from "../host/errors";
import type { MidiPort } from "../view";
import type { Act } from "./player";

const [NOTE_OFF, NOTE_ON, CONTROL] = [0x80, 0x90, 0xb0];

/** What comes in as it went out no longer ago is our own output, heard back through a loop. */
const ECHO_MS = 30;

const NO_MIDI =
  "This browser has no WebMIDI. Chrome, Edge and Opera have it, on computers and on Android, and so has Firefox " +
  "108 or newer on computers; Safari and every browser on iPhone and iPad have none. The keys of this page work.";
const INSECURE =
  "Browsers give MIDI only to pages from https:// or from localhost: open this page from there. Its keys work.";
const REFUSED =
  "The browser refused MIDI: allow it for this page in the site's permissions (beside the address; Firefox asks to " +
  "add a permission), then connect again.";

/** What is used of navigator. */
type RequestAccess = () => Promise<MIDIAccess>;

export class MidiPorts {
  onChange = () => {};
  /** What the player did, and when: seconds of the page's clock. */
  onAct: (act: Act, at: number, input: MIDIInput) => void = () => {};
  /** A keyboard that was listened to is gone. */
  onLost: (name: string) => void = () => {};
  problem: string | null = null;
  private access: MIDIAccess | null = null;
  private input: string | null = null;
  private output: string | null = null;
  private present = new Map<string, string>();
  private sounding = new Set<number>();
  private channels = new Set<number>([0]);
  private sent: { readonly at: number; readonly data: readonly number[] }[] = [];

  constructor(
    private readonly request: RequestAccess | null = requestAccess(),
    private readonly milliseconds: () => number = () => performance.now(),
  ) {}

  /** Asks the browser. Rejects with HostError, which `problem` says, too. */
  async connect(): Promise<void> {
    try {
      if (!this.access) {
        this.access = await this.asked();
        this.access.onstatechange = () => this.look();
      }
      this.problem = null;
      this.look();
    } catch (error) {
      this.problem = (error as Error).message;
      this.onChange();
      throw error;
    }
  }

  get inputs(): readonly MidiPort[] {
    return described(this.access?.inputs, this.input);
  }

  get outputs(): readonly MidiPort[] {
    return described(this.access?.outputs, this.output);
  }

  /** Whether notes go out. */
  get plays(): boolean {
    return this.out !== null;
  }

  /** null: listen to all. Ends nothing: the caller lets go what is held. */
  chooseInput(id: string | null): void {
    this.input = id;
    this.look();
  }

  chooseOutput(id: string | null): void {
    this.silence();
    this.output = id;
    this.look();
  }

  /** A note of the model's, on the first channel; velocity 0 ends it. at: seconds of the page's clock. */
  note(pitch: number, velocity: number, at: number): void {
    this.send(velocity ? [NOTE_ON, pitch, velocity] : [NOTE_OFF, pitch, 64], at * 1000);
  }

  /** The player's own, unless it comes from the device that it would go to. input: null = this page's keys. */
  through({ kind, channel, pitch, value }: Act, input: MIDIInput | null): void {
    if (!this.out || (input && sameDevice(input, this.out))) return;
    if (kind === "on") this.send([NOTE_ON | channel, pitch, value]);
    else if (kind === "off") this.send([NOTE_OFF | channel, pitch, 64]);
    else if (kind === "pedal") this.send([CONTROL | channel, SUSTAIN, value]);
    else this.send([CONTROL | channel, ALL_NOTES_OFF, 0]);
  }

  /** Ends everything on the output, by each of the ways that a synthesizer may know. */
  silence(): void {
    const { out } = this;
    if (!out) return;
    const now = this.milliseconds();
    const clear = (out as MIDIOutput & { clear?: () => void }).clear;
    if (clear) clear.call(out);
    this.quiet(now);
    // What was handed over for the next milliseconds cannot be taken back everywhere: it is ended when it comes.
    const latest = Math.max(...this.sent.map(({ at }) => at), 0);
    if (!clear && latest > now) this.quiet(latest + 1);
    this.sounding.clear();
  }

  private quiet(atMs: number): void {
    const keys = [...this.sounding];
    for (const key of keys) this.send([NOTE_OFF | (key >> 7), key & 127, 64], atMs);
    for (const channel of this.channels) {
      for (const controller of [SUSTAIN, ALL_NOTES_OFF, ALL_SOUND_OFF]) {
        this.send([CONTROL | channel, controller, 0], atMs);
      }
    }
    for (const key of keys) this.sounding.add(key);
  }

  private send(data: readonly number[], atMs = this.milliseconds()): void {
    const { out } = this;
    if (!out) return;
    const [kind, channel] = [data[0] & 0xf0, data[0] & 0x0f];
    this.channels.add(channel);
    if (kind === NOTE_ON) this.sounding.add(128 * channel + data[1]);
    if (kind === NOTE_OFF) this.sounding.delete(128 * channel + data[1]);
    this.sent = this.sent.filter(({ at }) => at > this.milliseconds() - ECHO_MS);
    this.sent.push({ at: atMs, data });
    try {
      out.send([...data], atMs);
    } catch {
      this.look(); // it was pulled out this moment
    }
  }

  private get out(): MIDIOutput | null {
    const port = this.output === null ? undefined : this.access?.outputs.get(this.output);
    return port && port.state === "connected" ? port : null;
  }

  private async asked(): Promise<MIDIAccess> {
    if (!this.request) throw new HostError("midi", globalThis.isSecureContext === false ? INSECURE : NO_MIDI);
    try {
      return await this.request();
    } catch (error) {
      const name = (error as { name?: string }).name ?? "";
      if (name === "SecurityError" || name === "NotAllowedError") throw new HostError("midi", REFUSED);
      throw new HostError(
        "midi",
        `The system's MIDI does not answer (${String(error)}): connect again later.`,
      );
    }
  }

  /** Which ports there are: listens to those that are chosen. */
  private look(): void {
    const present = new Map<string, string>();
    for (const port of this.access?.inputs.values() ?? []) {
      const chosen = this.input === null || this.input === port.id;
      port.onmidimessage = chosen ? (event) => this.hear(event, port) : null;
      if (chosen && port.state === "connected") present.set(port.id, port.name ?? "MIDI");
    }
    const gone = [...this.present].filter(
      ([id]) => !present.has(id) && this.access?.inputs.get(id)?.state !== "connected",
    );
    this.present = present;
    for (const [, name] of gone) this.onLost(name);
    this.onChange();
  }

  private hear(event: MIDIMessageEvent, input: MIDIInput): void {
    const { data, timeStamp } = event;
    if (!data || this.echoes(data, timeStamp)) return;
    const act = understood(data);
    if (act) this.onAct(act, timeStamp / 1000, input);
  }

  /** Each message that went out accounts for one that comes in. */
  private echoes(data: Uint8Array, timeStamp: number): boolean {
    const place = this.sent.findIndex(
      ({ at, data: own }) =>
        at <= timeStamp && timeStamp - at < ECHO_MS && own.every((byte, i) => byte === data[i]),
    );
    if (place >= 0) this.sent.splice(place, 1);
    return place >= 0;
  }
}

function requestAccess(): RequestAccess | null {
  return typeof navigator !== "undefined" && "requestMIDIAccess" in navigator
    ? () => navigator.requestMIDIAccess()
    : null;
}

/** What a message says of keys and pedals; null where nothing. */
export function understood(data: Uint8Array): Act | null {
  const [status, pitch, value] = data;
  const channel = status & 0x0f;
  if (data.length < 3) return null;
  if ((status & 0xf0) === NOTE_ON && value > 0) return { kind: "on", channel, pitch, value };
  if ((status & 0xf0) === NOTE_ON || (status & 0xf0) === NOTE_OFF) {
    return { kind: "off", channel, pitch, value: 0 };
  }
  if ((status & 0xf0) !== CONTROL) return null;
  if (pitch === SUSTAIN) return { kind: "pedal", channel, pitch: 0, value };
  if (pitch === RESET) return { kind: "pedal", channel, pitch: 0, value: 0 };
  if (pitch === ALL_SOUND_OFF || pitch === ALL_NOTES_OFF) {
    return { kind: "all_off", channel, pitch: 0, value: 0 };
  }
  return null;
}

function described(ports: MIDIInputMap | MIDIOutputMap | undefined, chosen: string | null): MidiPort[] {
  const all: MIDIPort[] = [...(ports?.values() ?? [])];
  return all
    .filter((port) => port.state === "connected")
    .map(({ id, name }) => ({ id, name: name ?? "MIDI", chosen: id === chosen }));
}

/** A keyboard with sounds is an input and an output of the same name. */
function sameDevice(input: MIDIPort, output: MIDIPort): boolean {
  const bare = (port: MIDIPort) =>
    `${port.manufacturer ?? ""} ${(port.name ?? "").replace(/\b(in|out|input|output)\b/gi, "").trim()}`;
  return bare(input) === bare(output);
}
