/*
 * The page without a network. Everything of this site is asked of the network first, because tomorrow another bundle
 * may be served at the same address; what site.json lists is kept, all of it or nothing, as the way out.
 *
 * A copy is one cache, named by the site's version. It is written to the end before older ones are dropped, so that a
 * page never finds one bundle's manifest beside another bundle's graph.
 */

const OURS = `dsmr ${self.registration.scope} `;
const PATIENCE_MS = 4000;
const COMPLETE = "complete"; // an entry that is written last
let keeping = Promise.resolve(false);

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(keep());
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

// The page asks after each start: is all of this site here? Answers {ready}.
self.addEventListener("message", (event) => {
  event.waitUntil(keep().then((ready) => event.ports[0]?.postMessage({ ready })));
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || new URL(request.url).origin !== self.location.origin) return;
  event.respondWith(asked(request).catch((error) => kept(request, error)));
});

/** A network that takes the question and never answers is none: a page that is opened does not wait for it. */
function asked(request) {
  const answer = fetch(request);
  if (request.mode !== "navigate") return answer;
  return Promise.race([
    answer,
    new Promise((_, reject) => setTimeout(reject, PATIENCE_MS, new Error("no answer"))),
  ]);
}

/** Whether the site is kept; one attempt at a time. */
function keep() {
  keeping = keeping.then(copy).catch(() => false);
  return keeping;
}

async function copy() {
  const site = await fetch(address("site.json"), { cache: "no-cache" })
    .then((response) => (response.ok ? response.json() : null))
    .catch(() => undefined);
  if (site === null) return false; // no list, no promise
  if (site === undefined) return (await complete()).length > 0;
  const name = OURS + site.version;
  const cache = await caches.open(name);
  if (!(await cache.match(address(COMPLETE)))) {
    for (const file of new Set(["", "site.json", ...site.files])) {
      const response = await fetch(address(file), { cache: "no-cache" });
      if (!response.ok) throw new Error(`${file}: ${response.status}`);
      await cache.put(address(file), response);
    }
    // Another site may have taken the place of this one meanwhile: then this copy is of two.
    const after = await fetch(address("site.json"), { cache: "no-cache" }).then((response) =>
      response.json(),
    );
    if (after.version !== site.version) {
      await caches.delete(name);
      throw new Error("the site has changed");
    }
    await cache.put(address(COMPLETE), new Response());
  }
  for (const other of await caches.keys()) {
    if (other.startsWith(OURS) && other !== name) await caches.delete(other);
  }
  return true;
}

async function kept(request, error) {
  const wanted = request.mode === "navigate" ? [request.url, address("")] : [request.url];
  for (const cache of await complete()) {
    for (const url of wanted) {
      const found = await cache.match(url, { ignoreSearch: true });
      if (found) return found;
    }
  }
  throw error;
}

/** Copies that were written to the end, the newest first. */
async function complete() {
  const ours = (await caches.keys()).filter((name) => name.startsWith(OURS)).reverse();
  const opened = await Promise.all(ours.map((name) => caches.open(name)));
  const whole = await Promise.all(opened.map((cache) => cache.match(address(COMPLETE))));
  return opened.filter((_, index) => whole[index]);
}

function address(path) {
  return new URL(path.split("/").map(encodeURIComponent).join("/"), self.registration.scope).href;
}
