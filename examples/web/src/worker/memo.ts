/** What is remembered in this browser: which graphs passed their golden vectors. */

import { get, set } from "idb-keyval";
import type { Memo } from "../host/host";

// Where nothing can be kept (a private window, say), the golden vectors run at every load.
export const memo: Memo = {
  // `try`, not `catch()`: where storage is blocked the call itself throws.
  async has(key) {
    try {
      return Boolean(await get(key));
    } catch {
      return false;
    }
  },
  async add(key) {
    try {
      await set(key, true);
    } catch {}
  },
};
