import { readFileSync } from "node:fs";
import { defineConfig } from "vite";

const onnxruntime = JSON.parse(readFileSync("node_modules/onnxruntime-web/package.json", "utf8"));

// What onnxruntime's module asks for where it runs in Node, which a page never does.
const external = ["module", "worker_threads"];

// base "./": the built site works in any folder of any host. Two entries: the page, and the host library alone
// (host.js), which other pages may import.
export default defineConfig({
  base: "./",
  define: { __ORT_VERSION__: JSON.stringify(onnxruntime.version) },
  build: {
    target: "es2022",
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 2000,
    rollupOptions: {
      external,
      input: { page: "index.html", host: "src/host/index.ts" },
      preserveEntrySignatures: "strict",
      output: { entryFileNames: (chunk) => (chunk.name === "host" ? "host.js" : "assets/[name]-[hash].js") },
    },
  },
  worker: { format: "es", rollupOptions: { external } },
});
