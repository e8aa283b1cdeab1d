/** Saved states, kept in this browser: IndexedDB, under a key that says when each was saved. */

import { createStore, del, entries, get, set, type UseStore } from "idb-keyval";
import { HostError } from "../host/errors";
import type { SavedEntry } from "../view";

interface Kept {
  readonly name: string;
  readonly date: number;
  /** Of the bundle: SHA-256 of its manifest. */
  readonly identity: string;
  /** A Blob, so that a list reads none of them. */
  readonly data: Blob;
}

/** All methods reject with HostError "state". */
export class States {
  private store: UseStore | null = null;

  /** Newest first. identity: of the bundle that is open, if any. */
  async list(identity: string | null): Promise<readonly SavedEntry[]> {
    const all = await kept(() => entries<string, Kept>(this.opened()));
    return all
      .map(([key, { name, date, identity: of, data }]) => ({
        key,
        name,
        date,
        bytes: data.size,
        fits: of === identity,
      }))
      .sort((a, b) => b.date - a.date);
  }

  async put(name: string, identity: string, data: ArrayBuffer): Promise<void> {
    const date = Date.now();
    const entry: Kept = { name, date, identity, data: new Blob([data]) };
    await kept(() => set(`${date} ${name}`, entry, this.opened()), data.byteLength);
  }

  async get(key: string): Promise<{ name: string; data: ArrayBuffer }> {
    const entry = await kept(() => get<Kept>(key, this.opened()));
    if (!entry) throw new HostError("state", "This state is no longer kept here: another tab deleted it.");
    return { name: entry.name, data: await kept(() => entry.data.arrayBuffer()) };
  }

  remove(key: string): Promise<void> {
    return kept(() => del(key, this.opened()));
  }

  private opened(): UseStore {
    this.store ??= createStore("dsmr-states", "states");
    return this.store;
  }
}

async function kept<T>(act: () => Promise<T>, bytes = 0): Promise<T> {
  try {
    return await act();
  } catch (error) {
    if ((error as { name?: string }).name === "QuotaExceededError") {
      const megabytes = (bytes / 1e6).toFixed(1);
      throw new HostError(
        "state",
        `This browser has no room for a state of ${megabytes} MB: delete saved ones, or save it as a file.`,
      );
    }
    throw new HostError(
      "state",
      `This browser keeps no states here (${String(error)}), as in a private window: save them as files.`,
    );
  }
}
