// npm run compare -- BUNDLE [GRAPH] [STEPS]: one token through a fused graph, by onnxruntime-web's JavaScript API and by
// its compiled module with the state updated in place, in turns in one run. Milliseconds a token, and the ratio.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import createModule from "onnxruntime-web/ort-wasm-simd-threaded.mjs";
import * as ort from "onnxruntime-web/wasm";

const [folder, wanted, steps = 400] = process.argv.slice(2);
const manifest = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8"));
const graph = manifest.graphs[wanted ?? manifest.default_graph];
const { stream: rule, state } = graph;
const half = manifest.model.head_dim / 2;
const bytes = readFileSync(join(folder, graph.file));
const wasm = fileURLToPath(import.meta.resolve("onnxruntime-web/ort-wasm-simd-threaded.wasm"));

const size = (shape) => shape.reduce((product, n) => product * n, 1);
const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
const wrapped = (total) =>
  total < rule.wrap_at ? total : total - rule.period * Math.floor((total - rule.capacity) / rule.period);

async function throughTheApi() {
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const array = (type, shape) =>
    type === "int8" ? new Int8Array(size(shape)) : new Float32Array(size(shape));
  const past = {};
  for (const { input, dtype, shape } of state)
    past[input] = new ort.Tensor(dtype, array(dtype, shape), shape);
  const rope = [new Float32Array(rule.rope_rows * half).fill(1), new Float32Array(rule.rope_rows * half)];
  let total = 0;
  return async (token) => {
    total = wrapped(total) + 1;
    const found = await session.run({
      input_ids: new ort.Tensor("int64", [BigInt(token)], [1, 1]),
      position_ids: new ort.Tensor("int64", [0n], [1, 1]),
      seqlens_k: new ort.Tensor("int32", [total - 1], [1]),
      total_sequence_length: new ort.Tensor("int32", [total], []),
      rope_cos: new ort.Tensor("float32", rope[0], [rule.rope_rows, half]),
      rope_sin: new ort.Tensor("float32", rope[1], [rule.rope_rows, half]),
      ...past,
    });
    for (const { input, output } of state) past[input] = found[output];
    return found.logits.data[7];
  };
}

async function inPlace() {
  const module = await createModule({ numThreads: 1, locateFile: () => wasm });
  module._OrtInit(1, 3);
  const text = (value) => {
    const pointer = module._malloc(value.length + 1);
    module.stringToUTF8(value, pointer, value.length + 1);
    return pointer;
  };
  const types = { float32: [1, 4], int8: [3, 1], int32: [6, 4], int64: [7, 8] };
  const tensor = (type, shape, fill = 0) => {
    const [code, width] = types[type];
    const [data, dims] = [module._malloc(size(shape) * width), module._malloc(4 * shape.length + 4)];
    module.HEAPU8.fill(0, data, data + size(shape) * width);
    module.HEAP32.set(shape, dims / 4);
    if (fill) new Float32Array(module.HEAPU8.buffer, data, size(shape)).fill(fill);
    return { data, handle: module._OrtCreateTensor(code, data, size(shape) * width, dims, shape.length, 1) };
  };
  const list = (values) => {
    const pointer = module._malloc(4 * values.length);
    module.HEAPU32.set(values, pointer / 4);
    return pointer;
  };
  const model = module._malloc(bytes.length);
  module.HEAPU8.set(bytes, model);
  const options = module._OrtCreateSessionOptions(99, 1, 1, 0, 0, 0, 0, 3, 0, 0);
  const session = module._OrtCreateSession(model, bytes.length, options);
  const own = {
    input_ids: tensor("int64", [1, 1]),
    position_ids: tensor("int64", [1, 1]),
    seqlens_k: tensor("int32", [1]),
    total_sequence_length: tensor("int32", []),
    rope_cos: tensor("float32", [rule.rope_rows, half], 1),
    rope_sin: tensor("float32", [rule.rope_rows, half]),
  };
  const logits = tensor("float32", [1, 1, manifest.model.vocab_size]);
  const places = state.map(({ dtype, shape }) => tensor(dtype, shape).handle);
  const inputs = [
    list([...Object.keys(own), ...state.map((one) => one.input)].map(text)),
    list([...Object.values(own).map((one) => one.handle), ...places]),
  ];
  const outputs = [
    list(["logits", ...state.map((one) => one.output)].map(text)),
    list([logits.handle, ...places]),
  ];
  const run = module._OrtCreateRunOptions(3, 0, 0, 0);
  let total = 0;
  return async (token) => {
    total = wrapped(total) + 1;
    module.HEAP32[own.input_ids.data / 4] = token;
    module.HEAP32[own.seqlens_k.data / 4] = total - 1;
    module.HEAP32[own.total_sequence_length.data / 4] = total;
    const status = await module._OrtRun(
      session,
      ...inputs,
      6 + places.length,
      outputs[0],
      1 + places.length,
      outputs[1],
      run,
    );
    if (status) throw new Error(`onnxruntime failed with ${status}`);
    return new Float32Array(module.HEAPU8.buffer, logits.data, 8)[7];
  };
}

const ways = { api: await throughTheApi(), "in place": await inPlace() };
const times = { api: [], "in place": [] };
for (let i = -50; i < Number(steps); i++) {
  const found = [];
  for (const [name, step] of Object.entries(ways)) {
    const began = performance.now();
    found.push(await step((i + 50) % manifest.model.vocab_size));
    if (i >= 0) times[name].push(performance.now() - began);
  }
  if (found[0] !== found[1]) throw new Error(`the logits differ: ${found}`);
}
for (const [name, values] of Object.entries(times))
  console.log(`${name.padEnd(9)} ${median(values).toFixed(2)} ms a token`);
console.log(`ratio     ${(median(times.api) / median(times["in place"])).toFixed(2)}`);
