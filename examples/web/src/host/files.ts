/** The files of a bundle, wherever they are: at an address, in a zip, or in a folder that was dropped. */

import { unzip } from "fflate";
import { HostError } from "./errors";

export interface Files {
  /** What messages call it. */
  readonly name: string;
  /** The bytes of a file. Throws HostError "bundle" where there is none. */
  read(path: string): Promise<Uint8Array<ArrayBuffer>>;
}

/** A folder on a server; `url` ends with a slash or not. */
export function filesAt(url: string): Files {
  const base = url.endsWith("/") ? url : `${url}/`;
  const name = nameOf(base.split("/").at(-2) ?? base);
  return {
    name,
    async read(path) {
      return new Uint8Array(await get(base + path.split("/").map(encodeURIComponent).join("/"), path));
    },
  };
}

/** A zip file at an address. */
export async function filesInZipAt(url: string): Promise<Files> {
  return unpacked(await get(url, url), nameOf(url.split("/").at(-1) ?? url));
}

/** A zip file; the bundle may lie in a folder of it. Throws HostError "bundle" for what is no zip. */
export async function filesInZip(data: Blob, name: string): Promise<Files> {
  return unpacked(await data.arrayBuffer(), name);
}

async function unpacked(data: ArrayBuffer, name: string): Promise<Files> {
  const packed = new Uint8Array(data);
  const entries = await new Promise<Record<string, Uint8Array>>((resolve, reject) => {
    unzip(packed, (error, found) => (error ? reject(error) : resolve(found)));
  }).catch((error: Error) => {
    throw new HostError(
      "bundle",
      `${name} is not a zip file, or a damaged one (${error.message}): pack it again.`,
    );
  });
  return within(
    name,
    Object.keys(entries).filter((path) => !path.endsWith("/")),
    async (path) => new Uint8Array(entries[path]),
  );
}

/** A dropped or chosen folder: path and content of each file. */
export function filesInFolder(files: readonly (readonly [string, Blob])[], name: string): Files {
  const byPath = new Map(files);
  return within(name, [...byPath.keys()], async (path) => {
    try {
      return new Uint8Array(await (byPath.get(path) as Blob).arrayBuffer());
    } catch (error) {
      throw new HostError(
        "bundle",
        `${path} cannot be read (${(error as Error).message}): choose the folder again.`,
      );
    }
  });
}

/** Files below the folder that has the manifest. */
function within(
  name: string,
  paths: readonly string[],
  read: (path: string) => Promise<Uint8Array<ArrayBuffer>>,
): Files {
  const manifests = paths.filter((path) => path === "manifest.json" || path.endsWith("/manifest.json"));
  manifests.sort((a, b) => a.length - b.length);
  const [manifest] = manifests;
  if (manifest === undefined) {
    throw new HostError(
      "bundle",
      `${name} has no manifest.json, so it is no bundle: give what dsmr-export wrote.`,
    );
  }
  const root = manifest.slice(0, -"manifest.json".length);
  const known = new Set(paths);
  return {
    name,
    async read(path) {
      if (!known.has(root + path)) throw missing(path, name);
      return read(root + path);
    },
  };
}

/** A part of an address as a name; one with a stray % as it stands. */
function nameOf(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** `what`: what messages call it. Throws HostError "bundle" for an address that is none, too. */
async function get(url: string, what: string): Promise<ArrayBuffer> {
  const refused = (why: unknown, todo: string) =>
    new HostError("bundle", `${what} cannot be fetched (${why}): ${todo}`);
  if (!URL.canParse(url)) throw refused("no address", "give one that begins with https://");
  try {
    const response = await fetch(url);
    if (response.ok) return await response.arrayBuffer(); // which fails where the connection ends too early
    throw refused(response.status, "check the address.");
  } catch (error) {
    if (error instanceof HostError) throw error;
    const plain = /^http:\/\/(?!127\.0\.0\.1[:/]|localhost[:/])/.test(url);
    throw refused(
      (error as Error).message,
      plain ? "give an address with https://" : "is the server there, and does it allow this page?",
    );
  }
}

function missing(path: string, name: string): HostError {
  return new HostError("bundle", `${name} has no ${path}, so it is not complete: export the bundle again.`);
}
