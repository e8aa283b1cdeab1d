/** The page: wires its parts to a session. */

import { createSession } from "../engine/session";
import { ComputerKeys, printedLetters } from "./computer_keys";
import { button, element } from "./elements";
import { Figures } from "./figures";
import { Hands } from "./hands";
import { Keys } from "./keys";
import { MidiPanel } from "./midi_panel";
import { Notices } from "./notices";
import { keepForOffline } from "./offline";
import { Opening } from "./opening";
import { PiecePanel } from "./piece_panel";
import { Roll } from "./roll";
import { RollSummary } from "./roll_summary";
import { SettingsPanel } from "./settings";
import { themeButton } from "./theme";
import { Transport } from "./transport";

/** Pictures are drawn for so long after the last thing that moved, in milliseconds. */
const TAIL_MS = 500;

const session = createSession();
const notices = new Notices(element("notices", HTMLDivElement));
const opening = new Opening(session, notices);
const transport = new Transport(session, notices);
const hands = new Hands(session);
const keys = new Keys(hands);
const computer = new ComputerKeys(hands, {
  goOn: () => transport.goOn(),
  stop: () => opening.close() || transport.stop(),
  undo: () => transport.undo(),
  vary: () => transport.vary(),
  octave: (by) => {
    computer.shift(by);
    keys.name(computer.first, letters);
  },
});
let letters: readonly string[] = [];
const roll = new Roll(session, wake);
const summary = new RollSummary();
const figures = new Figures(() => session.view());
const panels = [
  transport,
  keys,
  new SettingsPanel(session),
  new MidiPanel(session, notices),
  new PiecePanel(session, notices),
];

let started = false;
let drawing = false;
let movedAt = 0;
let lastNow = -1;

/** Draws until nothing has moved for a while. */
function wake(): void {
  movedAt = performance.now();
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(picture);
}

function picture(time: number): void {
  const view = session.view();
  const moving = roll.draw(view, time);
  keys.light(view.sounding);
  const plays = view.phase === "thinking" || view.phase === "answering" || view.sounding.size > 0;
  if (moving || plays || view.now !== lastNow) movedAt = performance.now();
  if (plays || view.now !== lastNow) {
    figures.show();
    summary.show(() => session.view());
  }
  lastNow = view.now;
  drawing = performance.now() - movedAt < TAIL_MS;
  if (drawing) requestAnimationFrame(picture);
}

function changed(): void {
  const view = session.view();
  document.documentElement.dataset.phase = view.phase;
  if (view.opened) document.documentElement.dataset.opened = "";
  opening.show(view, started);
  for (const panel of panels) panel.show(view);
  button("wake").hidden = view.soundOn || view.settings.sound === "none" || !view.opened;
  figures.show();
  summary.show(() => session.view());
  wake();
}

/** Browsers let a page sound only after a click, a touch or a key: whichever is the first will do. After a failure
 * it is left to the button, so that each key does not tell of it again. */
function soundAtFirstGesture(): void {
  const wakeButton = button("wake");
  let failed = false;
  const gesture = async ({ target }: Event) => {
    if (session.view().soundOn || (failed && target !== wakeButton)) return;
    failed = !(await notices.attempt(session.wake()));
  };
  for (const kind of ["pointerdown", "pointerup", "keydown", "click"]) {
    window.addEventListener(kind, gesture, { capture: true });
  }
}

function openPanelsWhereThereIsRoom(): void {
  const open = matchMedia("(min-width: 60rem)").matches;
  for (const panel of document.querySelectorAll<HTMLDetailsElement>(".panels details")) panel.open = open;
}

async function start(): Promise<void> {
  session.onChange(changed);
  session.onNotice((text) => notices.show(text));
  themeButton(() => roll.repaint());
  soundAtFirstGesture();
  // Notes on MIDI out would sound on when the page is gone.
  window.addEventListener("pagehide", () => void session.stop());
  openPanelsWhereThereIsRoom();
  changed();
  void printedLetters().then((names) => {
    letters = names;
    keys.name(computer.first, letters);
  });
  await opening.served();
  started = true;
  changed();
  await keepForOffline();
}

Object.assign(globalThis, { dsmr: { session } });
void start();
