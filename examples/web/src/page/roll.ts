import type { RollNote, Session, View } from "../view";
import { button, element } from "./elements";
import { Palette } from "./palette";
import { RollPaint, STRIP } from "./roll_paint";
import { RollWindow } from "./roll_window";

/** Frames before the first bundle is open. */
const STEP_MS = 10;
const ZOOM = 1.5;
/** Seconds on a CSS pixel until somebody zooms: 15 s on a laptop, no less than 9 on a phone. */
const SECONDS_PER_PIXEL = 15 / 1200;

/** The piano roll: draws what the session holds, and lets somebody look back while nothing plays. */
export class Roll {
  private readonly stage = element("stage", HTMLElement);
  private readonly canvas = element("canvas", HTMLCanvasElement);
  private readonly context = this.canvas.getContext("2d", { alpha: false }) as CanvasRenderingContext2D;
  private readonly window = new RollWindow();
  private readonly still = matchMedia("(prefers-reduced-motion: reduce)");
  private readonly followButton = button("follow");
  private palette = new Palette(this.stage);
  private drawnAt = 0;
  private zoomed = false;

  /** wake: ask for a picture. */
  constructor(
    private readonly session: Session,
    private readonly wake: () => void,
  ) {
    new ResizeObserver(() => this.resized()).observe(this.stage);
    this.buttons();
    this.pointer();
    this.arrows();
  }

  /** After a change of theme. */
  repaint(): void {
    this.palette = new Palette(this.stage);
    this.wake();
  }

  /** Draws; `time` in milliseconds, of the screen. Returns whether another picture is due. */
  draw(view: View, time: number): boolean {
    const { width, height } = this.fitted();
    if (width <= STRIP || height <= 0) return false;
    if (view.phase === "thinking" || view.phase === "answering" || view.sounding.size > 0)
      this.window.follow();
    this.followButton.hidden = this.window.follows;
    const secondsPerFrame = secondsPerFrameOf(view);
    const left = this.window.left(view.now * secondsPerFrame);
    const inView = (note: RollNote) =>
      note.start * secondsPerFrame < left + this.window.spanS &&
      (note.end ?? Number.POSITIVE_INFINITY) * secondsPerFrame > left;
    const notes = view.notes.filter(inView);
    const coming = view.coming.filter(inView);
    const elapsed = this.still.matches
      ? Number.POSITIVE_INFINITY
      : Math.min(0.1, (time - this.drawnAt) / 1000);
    this.drawnAt = time;
    const moving = this.window.settle([...notes, ...coming], view.opened?.pitchRange ?? [21, 108], elapsed);
    const { spanS, lowest, highest } = this.window;
    const scene = { view, secondsPerFrame, width, height, left, spanS, lowest, highest, notes, coming };
    new RollPaint(this.context, this.palette, scene).paint();
    return moving;
  }

  private resized(): void {
    if (!this.zoomed) {
      this.window.spanS = Math.max(9, Math.min(20, this.stage.clientWidth * SECONDS_PER_PIXEL));
    }
    this.wake();
  }

  /** The canvas in the screen's own pixels. */
  private fitted(): { width: number; height: number } {
    const [width, height] = [this.stage.clientWidth, this.stage.clientHeight];
    const dense = devicePixelRatio || 1;
    const [wide, high] = [Math.round(width * dense), Math.round(height * dense)];
    if (this.canvas.width !== wide || this.canvas.height !== high) {
      [this.canvas.width, this.canvas.height] = [wide, high];
    }
    this.context.setTransform(dense, 0, 0, dense, 0, 0);
    return { width, height };
  }

  private get now(): number {
    const view = this.session.view();
    return view.now * secondsPerFrameOf(view);
  }

  private move(seconds: number): void {
    this.window.move(seconds, this.now);
    this.wake();
  }

  private zoom(factor: number): void {
    this.zoomed = true;
    this.window.zoom(factor, this.now);
    this.wake();
  }

  private follow(): void {
    this.window.follow();
    this.wake();
  }

  private buttons(): void {
    button("zoom-in").addEventListener("click", () => this.zoom(1 / ZOOM));
    button("zoom-out").addEventListener("click", () => this.zoom(ZOOM));
    this.followButton.addEventListener("click", () => {
      this.stage.focus({ preventScroll: true }); // the button is about to go
      this.follow();
    });
  }

  /** Dragging sideways, and wheels that turn sideways; up and down scroll the page as ever. */
  private pointer(): void {
    const secondsOf = (pixels: number) => (pixels / (this.stage.clientWidth - STRIP)) * this.window.spanS;
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.button === 0) this.stage.setPointerCapture(event.pointerId);
    });
    this.stage.addEventListener("pointermove", (event) => {
      if (event.buttons & 1 && this.stage.hasPointerCapture(event.pointerId))
        this.move(-secondsOf(event.movementX));
    });
    this.stage.addEventListener(
      "wheel",
      (event) => {
        const sideways = event.shiftKey && event.deltaX === 0 ? event.deltaY : event.deltaX;
        if (Math.abs(sideways) < Math.abs(event.deltaY) && !event.shiftKey) return;
        event.preventDefault();
        this.move(secondsOf(sideways));
      },
      { passive: false },
    );
  }

  /** What scrolls must be within the keyboard's reach, too. */
  private arrows(): void {
    this.stage.tabIndex = 0;
    this.stage.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const act = {
        ArrowLeft: () => this.move(-this.window.spanS / 8),
        ArrowRight: () => this.move(this.window.spanS / 8),
        PageUp: () => this.move(-this.window.spanS * 0.75),
        PageDown: () => this.move(this.window.spanS * 0.75),
        Home: () => this.move(Number.NEGATIVE_INFINITY),
        End: () => this.follow(),
        "+": () => this.zoom(1 / ZOOM),
        "=": () => this.zoom(1 / ZOOM),
        "-": () => this.zoom(ZOOM),
      }[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
  }
}

export const secondsPerFrameOf = (view: View): number => (view.opened?.stepMs ?? STEP_MS) / 1000;
