import { element } from "./elements";

/**
 * Lets the service worker (public/sw.js) keep a copy of the site, and says quietly when all of it is kept. Call it
 * after the start: it fetches what the page needs first, too. A browser without service workers, or a page that was
 * not served securely, needs the network; nothing else changes.
 */
export async function keepForOffline(): Promise<void> {
  if (!isSecureContext || !("serviceWorker" in navigator) || import.meta.env.DEV) return;
  try {
    await navigator.serviceWorker.register("./sw.js");
    const { active } = await navigator.serviceWorker.ready;
    if (!active) return;
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = ({ data }: MessageEvent<{ ready: boolean }>) => {
      element("offline", HTMLParagraphElement).hidden = !data.ready;
      document.documentElement.dataset.offline = data.ready ? "ready" : "no";
      port1.close();
    };
    active.postMessage("keep", [port2]);
  } catch {
    // Private windows of some browsers refuse it. The page is as good without.
  }
}
