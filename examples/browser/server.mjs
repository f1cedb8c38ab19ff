// Serves this page, its npm packages and one bundle on 127.0.0.1:  node server.mjs BUNDLE [PORT]
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { dirname, extname, join, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));
const PAGE = new Set(["index.html", "style.css", "page.js", "worker.js", "bundle.js", "unpack.js"]);
const TYPES = {
  ".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript",
  ".json": "application/json", ".wasm": "application/wasm",
};
// Only a page that shuts others out gets shared memory, without which WebAssembly has one thread.
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Content-Security-Policy": "default-src 'self'; img-src data:; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:",
  "X-Content-Type-Options": "nosniff",
  "Cache-Control": "no-cache",
};

function under(root, name) {
  const path = resolve(root, name);
  return path.startsWith(resolve(root) + sep) ? path : null;
}

function locate(pathname, bundle) {
  if (pathname.startsWith("/bundle/")) return under(bundle, pathname.slice("/bundle/".length));
  if (pathname.startsWith("/npm/")) return under(join(HERE, "node_modules"), pathname.slice("/npm/".length));
  const name = pathname === "/" ? "index.html" : pathname.slice(1);
  return PAGE.has(name) ? join(HERE, name) : null;
}

export async function serve(bundle, port = 0) {
  if (!(await stat(join(bundle, "edge_distill.json")).catch(() => null))) throw new Error(`${bundle} is no bundle`);
  const server = createServer(async (request, response) => {
    let path = null;
    try {
      path = locate(decodeURIComponent(new URL(request.url, "http://localhost").pathname), bundle);
    } catch { /* a malformed address is not found */ }
    const found = path && (await stat(path).catch(() => null));
    if (request.method !== "GET" || !found?.isFile()) return response.writeHead(404, HEADERS).end("not found");
    const type = TYPES[extname(path)] ?? "application/octet-stream";
    response.writeHead(200, { ...HEADERS, "Content-Type": type, "Content-Length": found.size });
    createReadStream(path).on("error", () => response.destroy()).pipe(response);
  });
  await new Promise((done, failed) => server.once("error", failed).listen(port, "127.0.0.1", done));
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [bundle, port = "8000"] = process.argv.slice(2);
  if (!bundle) {
    console.error("node server.mjs BUNDLE [PORT]");
    process.exit(2);
  }
  console.log(`open ${(await serve(bundle, Number(port))).url}`);
}
