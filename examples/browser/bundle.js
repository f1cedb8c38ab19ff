// An edge-distill bundle in the browser: the files, the prompt, and greedy decoding on the int4 graph.
import { Tokenizer } from "/npm/@huggingface/tokenizers/dist/tokenizers.min.mjs";
import * as ort from "/npm/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
import { unpack } from "/unpack.js";

ort.env.wasm.wasmPaths = "/npm/onnxruntime-web/dist/";

// Unpacked, a weight takes 4 bytes (8 while loading); WebAssembly's memory ends at 4 GiB.
const MOST_UNPACKED = 350e6;

async function download(url, entry, onBytes) {
  const response = await fetch(url + entry.path);
  if (!response.ok) throw new Error(`${entry.path}: HTTP ${response.status}`);
  const bytes = new Uint8Array(entry.size);
  let at = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > entry.size) throw new Error(`${entry.path} is longer than its ${entry.size} bytes`);
    bytes.set(value, at);
    onBytes((at += value.length));
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (at !== entry.size || hex !== entry.sha256) throw new Error(`${entry.path} is damaged: its SHA-256 is ${hex}`);
  return bytes;
}

export class Bundle {
  /** Download and check the files that the manifest names, and open the graph. */
  static async load(url, { threads, onProgress = () => {} }) {
    const manifest = await (await fetch(`${url}edge_distill.json`)).json();
    if (manifest.format !== "onnx") throw new Error(`this page needs an ONNX bundle, this one is ${manifest.format}`);
    const files = {};
    for (const path of ["tokenizer.json", "model.onnx", "model.onnx.data"]) {
      const entry = manifest.files.find((file) => file.path === path);
      if (entry) files[path] = await download(url, entry, (bytes) => onProgress(path, bytes, entry.size));
    }
    const tokenizer = new Tokenizer(JSON.parse(new TextDecoder().decode(files["tokenizer.json"])), {});
    ort.env.wasm.numThreads = threads;
    const data = files["model.onnx.data"];
    const unpacked = manifest.parameter_count <= MOST_UNPACKED;
    const graph = unpacked ? unpack(files["model.onnx"]) : files["model.onnx"];
    const session = await ort.InferenceSession.create(graph, {
      executionProviders: ["wasm"],
      extra: { session: { disable_quant_qdq: unpacked ? "1" : "0" } }, // 1: DequantizeLinear is computed while loading
      externalData: data ? [{ path: "model.onnx.data", data }] : [],
    });
    return new Bundle(manifest, tokenizer, session);
  }

  constructor(manifest, tokenizer, session) {
    Object.assign(this, { manifest, tokenizer, session });
    this.versions = { "onnxruntime-web": ort.env.versions.web, threads: ort.env.wasm.numThreads };
  }

  /** Token ids of one question in the chat form, as edge_distill_runtime.chat.render writes it. */
  encode(question) {
    const { chat, bos_id } = this.manifest;
    const content = chat?.strips_content ? question.trim() : question;
    const text = chat
      ? chat.prefix + chat.default_system + chat.user[0] + content + chat.user[1] + chat.generation_prompt
      : question;
    const { ids } = this.tokenizer.encode(text, { add_special_tokens: false });
    return chat || bos_id === null || ids[0] === bos_id ? ids : [bos_id, ...ids];
  }

  decode(tokens) {
    return this.tokenizer.decode(tokens, { skip_special_tokens: false, clean_up_tokenization_spaces: false });
  }

  /** The likeliest token, again and again, until a stop token, `maxTokens` or a full context. */
  async *generate(prompt, { maxTokens }) {
    const { context_length, stop_ids } = this.manifest;
    if (prompt.length >= context_length) {
      throw new Error(`the prompt has ${prompt.length} tokens, the context is ${context_length}`);
    }
    let past = this.#emptyCache();
    let fed = prompt;
    for (let length = prompt.length, made = 0; ; length += 1) {
      const outputs = await this.session.run({ ...this.#inputs(fed, length), ...past });
      const token = await likeliest(outputs.logits);
      if (stop_ids.includes(token)) return;
      yield token;
      if (++made >= maxTokens || length >= context_length) return;
      past = Object.fromEntries(Object.keys(past).map((name) => [name, outputs[name.replace("past_key_values", "present")]]));
      fed = [token];
    }
  }

  #inputs(tokens, length) {
    const row = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
    const inputs = { input_ids: row(tokens), attention_mask: row(new Array(length).fill(1)) };
    if (this.session.inputNames.includes("position_ids")) {
      inputs.position_ids = row(tokens.map((_, index) => length - tokens.length + index));
    }
    return inputs;
  }

  #emptyCache() {
    const { kv_heads, head_dim, bytes_per_value } = this.manifest.kv;
    const [type, Values] = bytes_per_value === 2 ? ["float16", Uint16Array] : ["float32", Float32Array];
    const names = this.session.inputNames.filter((name) => name.startsWith("past_key_values."));
    return Object.fromEntries(
      names.map((name) => [name, new ort.Tensor(type, new Values(0), [1, kv_heads, 0, head_dim])]),
    );
  }
}

/** Index of the largest of the last position's logits [1, tokens, vocab]. */
async function likeliest(logits) {
  const vocabulary = logits.dims[2];
  const row = (await logits.getData()).subarray(-vocabulary);
  let best = 0;
  for (let token = 1; token < vocabulary; token++) if (row[token] > row[best]) best = token;
  if (!Number.isFinite(row[best])) throw new Error("the model computed NaN or infinite logits");
  return best;
}
