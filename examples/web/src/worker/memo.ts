/** What is remembered in this browser: which graphs passed their golden vectors. */

import { get, set } from "idb-keyval";
import type { Memo } from "../host/host";

// Where nothing can be kept (a private window, say), the golden vectors run at every load.
export const memo: Memo = {
  has: async (key) => Boolean(await get(key).catch(() => false)),
  add: async (key) => set(key, true).catch(() => {}),
};
