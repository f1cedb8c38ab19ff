// The page: a question in, the answer as it comes, its reasoning dimmed.
const $ = (id) => document.getElementById(id);
const worker = new Worker("/worker.js", { type: "module" });
const settings = new URLSearchParams(location.search);
const threads = Number(settings.get("threads") ?? Math.min(4, navigator.hardwareConcurrency));
let markers = null;

function show(state, status) {
  document.body.dataset.state = state; // loading, ready, busy or error
  $("ask").disabled = state !== "ready";
  $("stop").disabled = state !== "busy";
  $("status").textContent = status;
}

function write(text) {
  let [reasoning, answer] = ["", text];
  if (markers && text.includes(markers.open)) {
    [reasoning, answer = ""] = text.slice(text.indexOf(markers.open) + markers.open.length).split(markers.close);
  }
  $("reasoning").textContent = reasoning.trim();
  $("answer").textContent = answer.trim();
}

const handlers = {
  progress: ({ path, bytes, size }) => show("loading", `${path}: ${(bytes / 1e6).toFixed(1)} of ${(size / 1e6).toFixed(1)} MB`),
  ready({ manifest, versions, seconds }) {
    markers = manifest.reasoning;
    $("model").textContent = manifest.name;
    $("about").textContent =
      `${(manifest.parameter_count / 1e6).toFixed(0)} M parameters, ${manifest.precision.bits_per_weight.toFixed(1)} bits ` +
      `per weight, onnxruntime-web ${versions["onnxruntime-web"]}, ${versions.threads} thread(s)`;
    document.body.dataset.versions = JSON.stringify(versions);
    show("ready", `loaded and verified in ${seconds.toFixed(1)} s`);
  },
  text: ({ text }) => write(text),
  done({ text, prompt, tokens, toFirst, perSecond }) {
    write(text);
    $("answer").dataset.result = JSON.stringify({ text, prompt, tokens, toFirst, perSecond });
    show("ready", `${tokens.length} tokens, the first after ${toFirst.toFixed(2)} s, then ${perSecond.toFixed(1)} a second`);
  },
  error: ({ message }) => show("error", message),
};

worker.onmessage = ({ data }) => handlers[data.kind](data);
worker.onerror = (event) => show("error", event.message ?? "the worker cannot start: was npm ci run?");
$("form").onsubmit = (event) => {
  event.preventDefault();
  delete $("answer").dataset.result;
  write("");
  show("busy", "computing the prompt");
  worker.postMessage({ kind: "ask", question: $("question").value, maxTokens: Number($("tokens").value) });
};
$("stop").onclick = () => worker.postMessage({ kind: "stop" });
show("loading", "starting");
worker.postMessage({ kind: "load", threads });
