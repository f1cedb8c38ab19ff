// Rewrites MatMulNBits for WebAssembly, whose build has no fast kernel for it and unpacks all weights for every token.
// The same bytes become DequantizeLinear, Transpose and MatMul, which ONNX Runtime computes once, while it loads.
// Only the messages of onnx.proto that hold such a node are touched; numbers are its field numbers.
const MODEL = { graph: 7 };
const GRAPH = { node: 1, initializer: 5 };
const NODE = { input: 1, output: 2, op_type: 4, attribute: 5 };
const ATTRIBUTE = { name: 1, i: 3, ints: 8, type: 20 };
const TENSOR = { dims: 1, data_type: 2, name: 8, raw_data: 9 };
const [UINT8, UINT4, FLOAT] = [2, 21, 1];
const [INT, INTS] = [2, 7]; // AttributeProto's types

const encoder = new TextEncoder();
const text = (bytes) => new TextDecoder().decode(bytes);

/** The fields of a message: `raw` is all of a field, `value` a number or the bytes in it. */
function fields(bytes) {
  const found = [];
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const start = at;
    const tag = varint();
    const [number, wire] = [Math.floor(tag / 8), tag % 8];
    let value = wire === 0 || wire === 2 ? varint() : null;
    if (wire === 2) value = bytes.subarray(at, (at += value));
    else if (wire !== 0) at += wire === 1 ? 8 : 4;
    if (at > bytes.length) throw new Error("model.onnx is cut off");
    found.push({ number, value, raw: bytes.subarray(start, at) });
  }
  return found;
}

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  return Uint8Array.from([...bytes, value]);
}

function join(parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** One field: a number, a string, bytes, or a message as the list of its fields. */
function field(number, value) {
  if (typeof value === "number") return join([varint(number * 8), varint(value)]);
  const bytes = typeof value === "string" ? encoder.encode(value) : Array.isArray(value) ? join(value) : value;
  return join([varint(number * 8 + 2), varint(bytes.length), bytes]);
}

function attribute(name, value) {
  const values = [value].flat().map((number) => field(Array.isArray(value) ? ATTRIBUTE.ints : ATTRIBUTE.i, number));
  const type = field(ATTRIBUTE.type, Array.isArray(value) ? INTS : INT);
  return field(NODE.attribute, [field(ATTRIBUTE.name, name), ...values, type]);
}

function node(op_type, inputs, output, attributes = {}) {
  const names = [...inputs.map((name) => field(NODE.input, name)), field(NODE.output, output)];
  const settings = Object.entries(attributes).map(([name, value]) => attribute(name, value));
  return field(GRAPH.node, [...names, field(NODE.op_type, op_type), ...settings]);
}

function tensor(name, data_type, dims, rest) {
  const shape = dims.map((size) => field(TENSOR.dims, size));
  return field(GRAPH.initializer, [...shape, field(TENSOR.data_type, data_type), field(TENSOR.name, name), ...rest]);
}

/** What a node says, as far as it matters here. */
function read(bytes) {
  const all = fields(bytes);
  const texts = (number) => all.filter((each) => each.number === number).map((each) => text(each.value));
  const attributes = {};
  for (const each of all.filter(({ number }) => number === NODE.attribute)) {
    const parts = fields(each.value);
    const name = parts.find(({ number }) => number === ATTRIBUTE.name);
    attributes[text(name.value)] = parts.find(({ number }) => number === ATTRIBUTE.i)?.value;
  }
  return { inputs: texts(NODE.input), outputs: texts(NODE.output), op_type: texts(NODE.op_type)[0], attributes };
}

const nameOf = (bytes) => text(fields(bytes).find(({ number }) => number === TENSOR.name).value);

/** The nodes and tensors in the place of one MatMulNBits without zero points, order of columns or bias. */
function replacement({ inputs, outputs: [output], attributes }, tensors) {
  const { K, N, bits, block_size } = attributes;
  const [a, weight, scales] = inputs;
  const blocks = [N, K / block_size];
  // the same data under another shape: where it lies is among the other fields
  const data = (name) => {
    const changed = [TENSOR.dims, TENSOR.data_type, TENSOR.name];
    return fields(tensors.get(name)).filter(({ number }) => !changed.includes(number)).map(({ raw }) => raw);
  };
  const [q, s, z, w] = ["quantized", "scales", "zero_points", "weight"].map((part) => `${output}/${part}`);
  const type = bits === 4 ? UINT4 : UINT8;
  const zeros = new Uint8Array((N * K * bits) / block_size / 8).fill(bits === 4 ? 0x88 : 0x80); // MatMulNBits' default
  return [
    tensor(q, type, [N, K], data(weight)),
    tensor(s, FLOAT, blocks, data(scales)),
    tensor(z, type, blocks, [field(TENSOR.raw_data, zeros)]),
    node("DequantizeLinear", [q, s, z], `${w}/rows`, { axis: 1, block_size }),
    node("Transpose", [`${w}/rows`], w, { perm: [1, 0] }),
    node("MatMul", [a, w], output),
  ];
}

function unpackGraph(graph) {
  const all = fields(graph);
  const tensors = new Map();
  for (const { number, value } of all) if (number === GRAPH.initializer) tensors.set(nameOf(value), value);
  const used = new Set();
  const parts = [];
  for (const { number, value, raw } of all) {
    if (number === GRAPH.initializer) continue;
    const each = number === GRAPH.node ? read(value) : { inputs: [] };
    if (each.op_type === "MatMulNBits" && !each.inputs.slice(3).some(Boolean)) {
      parts.push(...replacement(each, tensors));
    } else {
      parts.push(raw);
      for (const name of each.inputs) used.add(name);
    }
  }
  for (const [name, value] of tensors) if (used.has(name)) parts.push(field(GRAPH.initializer, value));
  return join(parts);
}

/** model.onnx with its MatMulNBits unpacked; open it with `session.disable_quant_qdq`, or it is packed again. */
export function unpack(model) {
  const parts = fields(model).map(({ number, value, raw }) => (number === MODEL.graph ? field(number, unpackGraph(value)) : raw));
  return join(parts);
}
