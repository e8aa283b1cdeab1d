/** What somebody dropped or chose: by content where that tells, else by name. */

import type { Source } from "../protocol";

export type Found =
  | { readonly kind: "midi"; readonly file: File }
  | { readonly kind: "state"; readonly file: File }
  | { readonly kind: "bundle"; readonly source: Source };

export interface Gathered {
  /** The first thing that is of use; null where nothing is. */
  readonly found: Found | null;
  /** Names of what was left alone. */
  readonly ignored: readonly string[];
}

/** A folder or file that was dropped. Its parts must be taken from the event before the handler returns. */
type Dropped = File | FileSystemDirectoryEntry;

export function dropped(transfer: DataTransfer): Dropped[] {
  const parts = [...transfer.items].filter((item) => item.kind === "file");
  return parts.flatMap((item): Dropped[] => {
    const entry = item.webkitGetAsEntry();
    if (entry?.isDirectory) return [entry as FileSystemDirectoryEntry];
    const file = item.getAsFile();
    return file ? [file] : [];
  });
}

export async function gather(parts: readonly Dropped[]): Promise<Gathered> {
  const files = parts.filter((part) => part instanceof File);
  // The files of a bundle without the folder around them.
  if (files.some((file) => file.name === "manifest.json")) {
    const source = folder("the dropped files", files);
    return {
      found: source,
      ignored: parts.filter((part) => !(part instanceof File)).map(({ name }) => name),
    };
  }
  let found: Found | null = null;
  const ignored: string[] = [];
  for (const part of parts) {
    const meaning: Found | null = found ? null : await meaningOf(part);
    if (meaning) found = meaning;
    else ignored.push(part.name);
  }
  return { found, ignored };
}

/** The files of a folder that was chosen with a button. */
export function chosenFolder(files: FileList): Gathered {
  const list = [...files];
  const name = list[0]?.webkitRelativePath.split("/")[0] || "the folder";
  return { found: list.length > 0 ? folder(name, list) : null, ignored: [] };
}

function folder(name: string, files: readonly File[]): Found {
  const paths = files.map((file) => [file.webkitRelativePath || file.name, file] as const);
  return { kind: "bundle", source: { kind: "folder", name, files: paths } };
}

async function meaningOf(part: Dropped): Promise<Found | null> {
  if (!(part instanceof File)) {
    return { kind: "bundle", source: { kind: "folder", name: part.name, files: await filesBelow(part) } };
  }
  const head = new TextDecoder("latin1").decode(await part.slice(0, 11).arrayBuffer());
  if (head.startsWith("MThd")) return { kind: "midi", file: part };
  if (head.startsWith("dsmr-state ")) return { kind: "state", file: part };
  if (head.startsWith("PK")) return { kind: "bundle", source: { kind: "zip", name: part.name, data: part } };
  // By name then, so that a damaged one is told to be that.
  const ending = part.name.toLowerCase().split(".").at(-1);
  if (ending === "mid" || ending === "midi") return { kind: "midi", file: part };
  if (ending === "dsmr-state") return { kind: "state", file: part };
  if (ending === "zip") return { kind: "bundle", source: { kind: "zip", name: part.name, data: part } };
  return null;
}

/** All files below a folder, with their paths in it. */
async function filesBelow(entry: FileSystemDirectoryEntry, path = ""): Promise<(readonly [string, File])[]> {
  const result: (readonly [string, File])[] = [];
  for (const child of await entriesOf(entry)) {
    const inner = path + child.name;
    if (child.isDirectory) {
      result.push(...(await filesBelow(child as FileSystemDirectoryEntry, `${inner}/`)));
    } else {
      const file = await new Promise<File>((resolve, reject) =>
        (child as FileSystemFileEntry).file(resolve, reject),
      );
      result.push([inner, file]);
    }
  }
  return result;
}

/** A browser gives a folder's entries by the hundred, and none at the end. */
async function entriesOf(entry: FileSystemDirectoryEntry): Promise<FileSystemEntry[]> {
  const reader = entry.createReader();
  const result: FileSystemEntry[] = [];
  for (;;) {
    const part = await new Promise<FileSystemEntry[]>((resolve, reject) =>
      reader.readEntries(resolve, reject),
    );
    if (part.length === 0) return result;
    result.push(...part);
  }
}
