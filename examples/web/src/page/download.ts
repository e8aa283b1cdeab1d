import { made } from "./elements";

/** Lets the user keep a file. */
export function download(name: string, data: Uint8Array, type: string): void {
  const url = URL.createObjectURL(new Blob([data as Uint8Array<ArrayBuffer>], { type }));
  made("a", "", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** The local time, so that files lie in the order in which they were made. */
export function fileName(): string {
  const now = new Date();
  const digits = (value: number) => String(value).padStart(2, "0");
  const day = [now.getFullYear(), now.getMonth() + 1, now.getDate()].map(digits).join("-");
  return `dsmr ${day} ${[now.getHours(), now.getMinutes(), now.getSeconds()].map(digits).join(".")}`;
}
