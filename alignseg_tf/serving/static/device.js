// The page that runs a .tflite file in this browser. Requests fetch the model and LiteRT.js; none
// carries the image or what was seen in it.

import { labelsIn } from "./labels.js";
import { classMapOf, sizesOf } from "./maps.js";
import {
  PlainError, decode, element, paintMask, say, setUpChoosing, setUpOpacity, showError, showLegend,
  showImage,
} from "./painting.js";

const LITERT = "/litert/";
// Larger images are made smaller: the table and the colours need no more.
const MAX_PIXELS = 2048 * 2048;

let token = "";
let litert = null; // LiteRT.js
let served = null; // the model as /v1/models describes it
let network = null; // {model, input, output, labels}
let waiting = null; // an image that was given before a model

// ---- the model

async function ask(path) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { headers });
  } catch (error) {
    throw new PlainError("The server cannot be reached.", String(error.message));
  }
  if (response.ok) return response;
  const detail = await response.json().then((body) => body.error, () => "");
  if (response.status === 401) {
    element("access").open = true;
    throw new PlainError(token ? "The server does not know this access token."
      : "The server wants an access token.", detail);
  }
  throw new PlainError(`The server answered with an error (${response.status}).`, detail);
}

async function listModels() {
  try {
    served = (await (await ask("/v1/models")).json()).models[0];
    const options = served.files.map(({ name, bytes, url }) => (
      new Option(`${name} (${Math.ceil(bytes / 1000)} kB)`, url)
    ));
    element("models").replaceChildren(...options);
    element("server-models").hidden = options.length === 0;
    element("no-models").hidden = options.length > 0;
    showError(null);
  } catch (error) {
    showError(error);
  }
}

async function startLiteRt() {
  if (litert !== null) return;
  say("Starting LiteRT.js ...", true);
  let loaded;
  try {
    loaded = await import(`${LITERT}index.js`);
  } catch (error) {
    throw new PlainError(
      "This server does not have LiteRT.js, which runs models in a browser. Whoever runs the server "
      + "gets it by `make web` in the folder of alignseg_tf and starts the server again there.",
      String(error.message),
    );
  }
  // What its C++ writes is a log, most of it no error.
  const log = (text) => console.debug(text);
  self.Module = { print: log, printErr: log };
  await loaded.loadLiteRt(LITERT);
  litert = loaded;
}

async function useModel(name, read) {
  showError(null);
  element("load").disabled = true;
  try {
    await startLiteRt();
    say(`Loading ${name} ...`, true);
    const bytes = await read();
    let labels;
    let model;
    try {
      labels = await labelsIn(bytes);
      model = await litert.loadAndCompile(bytes, { accelerator: "wasm" });
    } catch (error) {
      throw new PlainError(`${name} is not a .tflite file that LiteRT.js reads.`, String(error));
    }
    const loaded = check(name, model, labels);
    network?.model.delete();
    network = loaded;
    const { height, width } = network.input;
    element("model").textContent = `${name}, for images of ${width} x ${height}`;
    say(`${name} is loaded. Choose an image.`);
    if (waiting !== null) await segment(waiting);
  } catch (error) {
    showError(error instanceof PlainError ? error
      : new PlainError("The model does not run in this browser.", String(error)));
  } finally {
    element("load").disabled = false;
  }
}

/** See that a model is one for images, and find names for its classes. */
function check(name, model, labels) {
  const inputs = model.getInputDetails();
  const outputs = model.getOutputDetails();
  const shown = ({ dtype, shape }) => `${dtype} [${[...shape].join(", ")}]`;
  const detail = `Received: ${inputs.map(shown).join("; ")} -> ${outputs.map(shown).join("; ")}`;
  const [input, output] = [inputs[0], outputs[0]];
  const fits = inputs.length === 1 && outputs.length === 1
    && input.shape.length === 4 && input.shape[0] === 1 && input.shape[3] === 3
    && ["uint8", "float32"].includes(input.dtype)
    && ((output.shape.length === 4 && output.dtype === "float32")
      || (output.shape.length === 3 && ["uint8", "int32"].includes(output.dtype)));
  if (!fits || [...input.shape, ...output.shape].some((side) => side < 1)) {
    model.delete();
    throw new PlainError(`${name} is not a model that this page can use. It takes uint8 or float32 `
      + "[1, height, width, 3] of a fixed size and gives logits or class ids.", detail);
  }
  const known = labels ?? (served && {
    classes: served.classes.map((each) => each.name),
    palette: served.classes.map((each) => each.color),
  });
  const count = output.shape.length === 4 ? output.shape[3] : null;
  if (known === null || (count !== null && known.classes.length !== count)) {
    model.delete();
    throw new PlainError(`${name} does not say what its classes are called, and the server has no `
      + "names for as many.", detail);
  }
  return { model, input: { dtype: input.dtype, ...sizesOf(input.shape) }, labels: known };
}

// ---- an image

async function segment(blob) {
  showError(null);
  waiting = blob;
  if (network === null) {
    say("The image is here. Load a model to segment it.");
    return;
  }
  try {
    say("The model is looking at the image ...", true);
    await nextFrame();
    const bitmap = await decode(blob);
    if (bitmap === null) {
      throw new PlainError("This file is damaged, or not an image that this browser can show.");
    }
    const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (bitmap.width * bitmap.height)));
    const width = Math.max(1, Math.floor(bitmap.width * scale));
    const height = Math.max(1, Math.floor(bitmap.height * scale));
    const started = performance.now();
    const classMap = classMapOf(await run(bitmap), network.input, { width, height });
    const seconds = (performance.now() - started) / 1000;
    show(bitmap, classMap, width, height);
    say(`Done on this device in ${seconds.toFixed(2)} s: ${width} x ${height} pixels.`);
    element("result").focus({ preventScroll: true });
  } catch (error) {
    element("result").hidden = true;
    showError(error instanceof PlainError ? error
      : new PlainError("The model failed on this image.", String(error)));
  }
}

/** Let the browser draw what was said before it is busy. */
const nextFrame = () => new Promise((resolve) => {
  requestAnimationFrame(() => setTimeout(resolve));
});

/** Put an image through the model; return {data, shape} of its output. */
async function run(bitmap) {
  const { width, height, dtype } = network.input;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  const rgba = context.getImageData(0, 0, width, height).data;
  const Values = dtype === "uint8" ? Uint8Array : Float32Array;
  const values = new Values(3 * width * height);
  for (let i = 0, j = 0; j < values.length; i += 4) {
    values[j++] = rgba[i];
    values[j++] = rgba[i + 1];
    values[j++] = rgba[i + 2];
  }
  const input = new litert.Tensor(values, [1, height, width, 3]);
  let outputs = [];
  try {
    outputs = await network.model.run(input);
    const data = await outputs[0].data();
    return { data, shape: [...outputs[0].type.layout.dimensions] };
  } finally {
    for (const tensor of [input, ...outputs]) tensor.delete();
  }
}

function show(bitmap, classMap, width, height) {
  const { classes, palette } = network.labels;
  const counts = new Array(classes.length).fill(0);
  for (const id of classMap) if (id < counts.length) counts[id]++;
  showImage(bitmap, width, height);
  paintMask(classMap, width, height, palette);
  showLegend(counts.flatMap((count, id) => (
    count ? [{ name: classes[id], color: palette[id], share: count / classMap.length }] : []
  )));
  element("result").hidden = false;
}

setUpOpacity();
setUpChoosing(segment);
element("load").addEventListener("click", () => {
  const { value: url, selectedOptions } = element("models");
  const name = selectedOptions[0].text.replace(/ \([^(]*\)$/, "");
  useModel(name, async () => new Uint8Array(await (await ask(url)).arrayBuffer()));
});
element("model-file").addEventListener("change", () => {
  const file = element("model-file").files[0];
  if (file) useModel(file.name, async () => new Uint8Array(await file.arrayBuffer()));
});
element("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = element("token").value.trim();
  listModels();
});
listModels();
