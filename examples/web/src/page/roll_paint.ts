import { MODEL } from "../protocol";
import type { RollNote, View } from "../view";
import type { Palette } from "./palette";
import { clock, count, isBlack, layersText } from "./wording";

/** What a picture needs. Lengths in CSS pixels, times in seconds. */
export interface Scene {
  readonly view: View;
  readonly secondsPerFrame: number;
  readonly width: number;
  readonly height: number;
  readonly left: number;
  readonly spanS: number;
  /** Lowest and highest pitch in view, with fractions. */
  readonly lowest: number;
  readonly highest: number;
  /** Notes in view, and those that the model means to play. */
  readonly notes: readonly RollNote[];
  readonly coming: readonly RollNote[];
}

export const STRIP = 34; // keys at the left
const AXIS = 20; // times below
const ROW = 19; // a band's label
const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
/** Of the height, for labels of bands: of more bands than fit there, the shortest have none. */
const LABELS_SHARE = 0.34;
/** How much of the green is on the ground where every layer remembers. */
const DEEPEST = 0.28;

/** One picture of the roll. */
export class RollPaint {
  private readonly top: number;
  private readonly bottom: number;
  private readonly row: number;

  constructor(
    private readonly context: CanvasRenderingContext2D,
    private readonly palette: Palette,
    private readonly scene: Scene,
  ) {
    const bands = Math.max(1, scene.view.horizons.length);
    this.top = Math.min(bands, Math.max(1, Math.floor((LABELS_SHARE * scene.height) / ROW))) * ROW + 4;
    this.bottom = scene.height - AXIS;
    this.row = (this.bottom - this.top) / (scene.highest - scene.lowest + 1);
  }

  paint(): void {
    const { context, palette, scene } = this;
    context.font = FONT;
    context.textBaseline = "middle";
    context.fillStyle = palette.paper;
    context.fillRect(0, 0, scene.width, scene.height);
    this.bands();
    this.lanes();
    this.times();
    this.bandEdges();
    for (const note of scene.notes) this.note(note);
    for (const note of scene.coming) this.comingNote(note);
    this.present();
    this.bandLabels();
    this.keyStrip();
  }

  private x(seconds: number): number {
    return STRIP + ((seconds - this.scene.left) / this.scene.spanS) * (this.scene.width - STRIP);
  }

  /** The upper edge of a pitch's lane. */
  private y(pitch: number): number {
    return this.bottom - (pitch + 1 - this.scene.lowest) * this.row;
  }

  private get nowX(): number {
    return this.x(this.scene.view.now * this.scene.secondsPerFrame);
  }

  /** Bands from the longest memory to the shortest, with where they begin. */
  private *memories() {
    const { view, secondsPerFrame } = this.scene;
    const byReach = [...view.horizons].sort((a, b) => b.tokens - a.tokens);
    for (const [index, horizon] of byReach.entries()) {
      yield { index, horizon, begin: this.x(horizon.from * secondsPerFrame) };
    }
  }

  /** What is remembered: a step for each group of layers, the shorter memories inside the longer ones. */
  private bands(): void {
    const { context, palette } = this;
    const end = this.nowX;
    for (const { index, begin } of this.memories()) {
      const from = Math.max(STRIP, begin);
      if (end <= from) continue;
      const top = Math.min(index * ROW + 2, this.top);
      context.fillStyle = palette.remembered(
        (DEEPEST * (index + 1)) / Math.max(2, this.scene.view.horizons.length),
      );
      context.fillRect(from, top, end - from, this.bottom - top);
    }
  }

  private bandEdges(): void {
    const { context, palette } = this;
    for (const { index, begin } of this.memories()) {
      const top = Math.min(index * ROW + 2, this.top);
      context.fillStyle = palette.memory;
      if (begin >= STRIP) context.fillRect(begin, top, 1.5, this.bottom - top);
    }
  }

  private bandLabels(): void {
    const { context, palette, scene } = this;
    const rows = Math.round((this.top - 4) / ROW);
    for (const { index, horizon, begin } of this.memories()) {
      if (index >= rows) break;
      const text = `${layersText(horizon.layers)} · ${count(horizon.tokens)} tokens`;
      const width = context.measureText(text).width + 10;
      const x = Math.min(Math.max(begin + 2, STRIP + 2), scene.width - width - 2);
      const y = index * ROW + 4;
      context.fillStyle = palette.paper;
      context.globalAlpha = 0.82;
      context.beginPath();
      context.roundRect(x, y, width, ROW - 3, 3);
      context.fill();
      context.globalAlpha = 1;
      context.fillStyle = palette.ink;
      context.fillText(text, x + 5, y + (ROW - 3) / 2 + 0.5);
    }
  }

  /** A faint line under each octave, and lanes a bit darker where keys are black. */
  private lanes(): void {
    const { context, palette, scene } = this;
    for (let pitch = Math.floor(scene.lowest); pitch <= scene.highest; pitch++) {
      const y = Math.max(this.top, this.y(pitch));
      const below = Math.min(this.bottom, this.y(pitch - 1));
      context.fillStyle = pitch % 12 === 0 ? palette.line : palette.lane;
      if (pitch % 12 === 0) context.fillRect(STRIP, Math.round(below) - 1, scene.width, 1);
      context.globalAlpha = 0.45;
      if (isBlack(pitch)) context.fillRect(STRIP, y, scene.width, below - y);
      context.globalAlpha = 1;
    }
  }

  private times(): void {
    const { context, palette, scene } = this;
    const perSecond = (scene.width - STRIP) / scene.spanS;
    const step = [1, 2, 5, 10, 30, 60, 120, 300].find((seconds) => seconds * perSecond >= 62) ?? 600;
    context.textAlign = "center";
    for (
      let time = Math.max(0, Math.ceil(scene.left / step) * step);
      time < scene.left + scene.spanS;
      time += step
    ) {
      const x = this.x(time);
      context.fillStyle = palette.line;
      context.fillRect(Math.round(x), this.top, 1, this.bottom - this.top);
      context.fillStyle = palette.soft;
      if (x < scene.width - 16) context.fillText(clock(time), x, this.bottom + AXIS / 2 + 1);
    }
    context.textAlign = "left";
  }

  private place(note: RollNote): readonly [x: number, y: number, width: number, height: number] {
    const { view, secondsPerFrame } = this.scene;
    const x = this.x(note.start * secondsPerFrame);
    const end = this.x((note.end ?? Math.max(view.now, note.start)) * secondsPerFrame);
    const height = Math.max(3, this.row - 1);
    return [x, this.y(note.pitch) + (this.row - height) / 2, Math.max(3, end - x - 1), height];
  }

  /** Heard notes have corners, the model's are round. */
  private outline(note: RollNote): void {
    const { context } = this;
    const [x, y, width, height] = this.place(note);
    context.beginPath();
    context.roundRect(x, y, width, height, note.by === MODEL ? Math.min(height / 2, width / 2) : 0.5);
  }

  private note(note: RollNote): void {
    const { context, palette } = this;
    this.outline(note);
    context.fillStyle = palette.shade(note.by, note.velocity);
    context.fill();
    context.lineWidth = note.end === null ? 1.5 : 1;
    context.strokeStyle = note.end === null ? palette.ink : palette.own[note.by];
    context.stroke();
  }

  private comingNote(note: RollNote): void {
    const { context, palette } = this;
    this.outline(note);
    context.lineWidth = 1;
    context.globalAlpha = 0.75;
    context.setLineDash([3, 2]);
    context.strokeStyle = palette.own[note.by];
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  private present(): void {
    this.context.fillStyle = this.palette.ink;
    this.context.fillRect(Math.round(this.nowX) - 0.75, 0, 1.5, this.bottom);
  }

  private keyStrip(): void {
    const { context, palette, scene } = this;
    context.fillStyle = palette.paper;
    context.fillRect(0, 0, STRIP, scene.height);
    context.fillStyle = palette.whiteKey;
    context.fillRect(0, this.top, STRIP - 1, this.bottom - this.top);
    for (let pitch = Math.floor(scene.lowest); pitch <= scene.highest; pitch++) {
      const y = Math.max(this.top, this.y(pitch));
      const height = Math.min(this.bottom, this.y(pitch - 1)) - y;
      const by = scene.view.sounding.get(pitch);
      if (by !== undefined || isBlack(pitch)) {
        context.fillStyle = by === undefined ? palette.blackKey : palette.own[by];
        context.fillRect(0, y + 0.5, isBlack(pitch) ? STRIP * 0.6 : STRIP - 1, Math.max(1, height - 1));
      }
      if (pitch % 12 === 0) this.octave(pitch, y, height);
    }
    context.fillStyle = palette.soft;
    context.fillRect(STRIP - 1, this.top, 1, this.bottom - this.top);
  }

  private octave(pitch: number, y: number, height: number): void {
    const { context, palette } = this;
    const middle = y + height / 2;
    if (height < 7 || middle < this.top + 6 || middle > this.bottom - 5) return;
    context.fillStyle = this.scene.view.sounding.has(pitch) ? palette.paper : palette.keyText;
    context.textAlign = "right";
    context.font = FONT.replace("12px", "10px");
    context.fillText(`C${pitch / 12 - 1}`, STRIP - 4, middle + 0.5);
    context.font = FONT;
    context.textAlign = "left";
  }
}
