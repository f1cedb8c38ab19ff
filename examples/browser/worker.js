// Runs the model beside the page, which so stays usable and can stop it.
import { Bundle } from "/bundle.js";

let bundle;
let stopped = false;

const handlers = {
  async load({ threads }) {
    const started = performance.now();
    bundle = await Bundle.load("/bundle/", {
      threads,
      onProgress: (path, bytes, size) => postMessage({ kind: "progress", path, bytes, size }),
    });
    const seconds = (performance.now() - started) / 1000;
    postMessage({ kind: "ready", manifest: bundle.manifest, versions: bundle.versions, seconds });
  },

  async ask({ question, maxTokens }) {
    stopped = false;
    const prompt = bundle.encode(question);
    const tokens = [];
    const started = performance.now();
    let first = started;
    for await (const token of bundle.generate(prompt, { maxTokens })) {
      if (tokens.push(token) === 1) first = performance.now();
      // a character may still lack some of its bytes
      postMessage({ kind: "text", text: bundle.decode(tokens).replace(/\uFFFD+$/, "") });
      await new Promise((done) => setTimeout(done)); // lets "stop" in
      if (stopped) break;
    }
    const [toFirst, rest] = [(first - started) / 1000, (performance.now() - first) / 1000];
    const text = bundle.decode(tokens);
    postMessage({ kind: "done", text, prompt, tokens, toFirst, perSecond: tokens.length > 1 ? (tokens.length - 1) / rest : 0 });
  },

  async stop() {
    stopped = true;
  },
};

onmessage = ({ data }) => handlers[data.kind](data).catch((error) => postMessage({ kind: "error", message: String(error) }));
