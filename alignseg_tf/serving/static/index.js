// The page that sends an image to the server and shows what the model sees in it.

import {
  PlainError, decode, element, paintMask, percent, save, say, setUpChoosing, setUpOpacity,
  showError, showLegend, showImage,
} from "./painting.js";

// Arrows to each side of the pointer, and the pixels of the screen between two.
const REACH = 3;
const BETWEEN = 16;
// Steps of the point by keyboard, as a share of the image's longer side.
const STEP = 1 / 64;
const LARGE_STEP = 1 / 8;

let token = "";
let model = null; // as /v1/models describes it
let asked = null; // the promise of that
let sent = null; // the image as the server got it: {blob, name}
let result = null; // {width, height, classes, classMap}
let fields = null; // offset fields by name, or a promise of them
let point = null; // {x, y} in pixels of the image
let turn = 0; // answers to earlier images are dropped

// ---- the server

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw new PlainError("The server cannot be reached.", String(error.message));
  }
  if (response.ok) return response;
  const detail = await response.json().then((body) => body.error, () => "");
  if (response.status === 401) {
    element("access").open = true;
    element("token").focus();
  }
  throw new PlainError(inWords(response), detail);
}

function inWords(response) {
  const wait = response.headers.get("Retry-After");
  const again = wait ? `Please try again in ${wait} s.` : "Please try again later.";
  switch (response.status) {
    case 401:
      return token ? "The server does not know this access token."
        : "The server wants an access token.";
    case 413:
      return "The image is too large for this server.";
    case 415:
      return "This file is not an image of a kind that the server reads: JPEG, PNG, WebP, BMP, TIFF.";
    case 422:
      return "The image is damaged, too small, or not a single one.";
    case 429:
      return `The server has too much to do. ${again}`;
    case 503:
      return `The server is not ready. ${again}`;
    case 408:
    case 504:
      return "This took too long.";
    default:
      return `The server answered with an error (${response.status}).`;
  }
}

async function loadModel() {
  try {
    model = (await (await ask("/v1/models")).json()).models[0];
    element("model").textContent = `model ${model.name}, version ${model.active}`;
    showError(null);
  } catch (error) {
    showError(error);
  }
}

// ---- an image

async function segment(blob, name) {
  const mine = ++turn;
  showError(null);
  say("Reading the image ...", true);
  try {
    let [bitmap] = await Promise.all([decode(blob), asked]);
    const limits = model?.input;
    let note = "";
    if (bitmap && limits && bitmap.width * bitmap.height > limits.max_pixels) {
      const scale = Math.sqrt(limits.max_pixels / (bitmap.width * bitmap.height));
      const size = [Math.floor(bitmap.width * scale), Math.floor(bitmap.height * scale)];
      blob = await resized(bitmap, ...size);
      bitmap = await decode(blob);
      note = ` It was made smaller first, to ${size.join(" x ")}: the server takes no more pixels.`;
    }
    if (limits && blob.size > limits.max_bytes) {
      throw new PlainError(
        `This file has ${megabytes(blob.size)} MB; the server takes ${megabytes(limits.max_bytes)} MB.`,
      );
    }
    say("The model is looking at the image ...", true);
    const response = await ask("/v1/segment?format=json", { method: "POST", body: blob });
    const answer = await response.json();
    if (mine !== turn) return;
    show({ blob, name }, bitmap, answer);
    const count = answer.classes.length;
    say(`Done: ${count} ${count === 1 ? "class" : "classes"} in ${answer.width} x ${answer.height} `
      + `pixels.${note}`);
    element("result").focus({ preventScroll: true });
  } catch (error) {
    if (mine !== turn) return;
    element("result").hidden = true;
    showError(error instanceof PlainError ? error
      : new PlainError("This page failed.", String(error)));
  }
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

async function resized(source, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
}

function show(image, bitmap, answer) {
  const { width, height, classes } = answer;
  sent = image;
  fields = null;
  point = null;
  result = { width, height, classes, classMap: classMapOf(answer) };
  showImage(bitmap, width, height);
  const palette = [];
  for (const { id, color } of classes) palette[id] = color;
  paintMask(result.classMap, width, height, palette);
  showLegend(classes);
  const withOffsets = model?.signatures.includes("offsets") ?? false;
  element("offsets").hidden = !withOffsets;
  element("no-offsets").hidden = withOffsets;
  element("point").textContent = "Point at the image, or move a point by the arrow keys.";
  element("result").hidden = false;
}

/** Class ids, row by row, from run-length codes that go column by column. */
function classMapOf({ width, height, classes }) {
  const classMap = new Uint8Array(width * height).fill(255);
  for (const { id, segmentation } of classes) {
    let place = 0;
    segmentation.counts.forEach((count, index) => {
      if (index % 2) {
        for (let i = place; i < place + count; i++) {
          classMap[(i % height) * width + Math.floor(i / height)] = id;
        }
      }
      place += count;
    });
  }
  return classMap;
}

// ---- offsets

async function loadFields() {
  const mine = turn;
  try {
    const options = { method: "POST", body: sent.blob };
    const answer = await (await ask("/v1/offsets?format=json", options)).json();
    if (mine !== turn) return;
    fields = new Map(answer.fields.map((field) => [field.name, field]));
    const chosen = element("field").value;
    element("field").replaceChildren(...answer.fields.map(({ name }) => new Option(name)));
    if (fields.has(chosen)) element("field").value = chosen;
    element("field").disabled = false;
    showPoint();
  } catch (error) {
    if (mine === turn) showError(error);
  }
}

function movePoint(x, y) {
  if (result === null) return;
  point = {
    x: Math.min(Math.max(x, 0), result.width - 1),
    y: Math.min(Math.max(y, 0), result.height - 1),
  };
  if (fields === null && !element("offsets").hidden) fields = loadFields();
  showPoint();
}

function showPoint() {
  const context = element("arrows").getContext("2d");
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  if (point === null) return;
  const [x, y] = [Math.round(point.x), Math.round(point.y)];
  const id = result.classMap[y * result.width + x];
  const found = result.classes.find((each) => each.id === id);
  let text = found ? `${found.name} (${percent(found.share)} of the image)` : "no class";
  text += ` at ${x}, ${y}.`;
  // A pixel of the screen in pixels of the image.
  const unit = result.width / (element("stage").clientWidth || result.width);
  if (fields instanceof Map) {
    const field = fields.get(element("field").value);
    drawArrows(context, field, unit);
    const { vector } = nearest(field);
    const [right, down] = vector.map((value) => value.toFixed(1));
    text += ` Offset of ${field.name} there: ${right} right, ${down} down, in pixels.`;
  }
  drawCross(context, unit);
  element("point").textContent = text;
}

/** The pixels of the image between two vectors of a field. */
function spacing({ width, height }) {
  return [
    width > 1 ? (result.width - 1) / (width - 1) : result.width,
    height > 1 ? (result.height - 1) / (height - 1) : result.height,
  ];
}

function nearest(field) {
  const [dx, dy] = spacing(field);
  const column = Math.min(Math.round(point.x / dx), field.width - 1);
  const row = Math.min(Math.round(point.y / dy), field.height - 1);
  return { column, row, vector: field.vectors[row][column] };
}

function drawArrows(context, field, unit) {
  const [dx, dy] = spacing(field);
  const magnify = Number(element("magnify").value);
  const { column, row } = nearest(field);
  const [across, down] = [dx, dy].map((d) => Math.max(1, Math.round(BETWEEN * unit / d)));
  const path = new Path2D();
  for (let j = row - REACH * down; j <= row + REACH * down; j += down) {
    for (let i = column - REACH * across; i <= column + REACH * across; i += across) {
      const vector = field.vectors[j]?.[i];
      if (vector) addArrow(path, i * dx, j * dy, vector[0] * magnify, vector[1] * magnify, unit);
    }
  }
  // White upon black is seen on every image.
  stroke(context, path, 5 * unit, "#000");
  stroke(context, path, 2 * unit, "#fff");
}

function addArrow(path, x, y, vx, vy, unit) {
  const dot = 1.5 * unit;
  path.moveTo(x + dot, y);
  path.arc(x, y, dot, 0, 2 * Math.PI);
  path.moveTo(x, y);
  path.lineTo(x + vx, y + vy);
  const length = Math.hypot(vx, vy);
  if (length < 3 * unit) return; // the dot says it all
  const head = Math.min(7 * unit, length / 2);
  const angle = Math.atan2(vy, vx);
  for (const turned of [angle + 2.6, angle - 2.6]) {
    path.moveTo(x + vx, y + vy);
    path.lineTo(x + vx + head * Math.cos(turned), y + vy + head * Math.sin(turned));
  }
}

function drawCross(context, unit) {
  const path = new Path2D();
  for (const [ux, uy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    path.moveTo(point.x + 5 * unit * ux, point.y + 5 * unit * uy);
    path.lineTo(point.x + 13 * unit * ux, point.y + 13 * unit * uy);
  }
  stroke(context, path, 5 * unit, "#000");
  stroke(context, path, 2.5 * unit, "#ffd400");
}

function stroke(context, path, width, color) {
  context.lineWidth = width;
  context.lineCap = "round";
  context.strokeStyle = color;
  context.stroke(path);
}

// ---- the camera

let stream = null;

async function startCamera() {
  showError(null);
  try {
    if (!navigator.mediaDevices) {
      throw new PlainError("Browsers give a camera to pages at https or localhost only.");
    }
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    const denied = error.name === "NotAllowedError";
    showError(error instanceof PlainError ? error : new PlainError(
      denied ? "The browser was told not to give the camera to this page."
        : "There is no camera that can be used.",
      denied ? "" : String(error.message),
    ));
    return;
  }
  element("video").srcObject = stream;
  element("camera-view").hidden = false;
  await element("video").play();
  element("shoot").focus();
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  element("camera-view").hidden = true;
  element("camera").focus();
}

async function shoot() {
  const video = element("video");
  if (!video.videoWidth) return;
  segment(await resized(video, video.videoWidth, video.videoHeight), "camera.jpg");
}

// ---- events

function setUpStage() {
  const stage = element("stage");
  stage.addEventListener("pointermove", (event) => {
    if (result === null) return;
    const box = stage.getBoundingClientRect();
    movePoint(
      ((event.clientX - box.left) / box.width) * result.width - 0.5,
      ((event.clientY - box.top) / box.height) * result.height - 0.5,
    );
  });
  stage.addEventListener("keydown", (event) => {
    const directions = {
      ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
    };
    const direction = directions[event.key];
    if (!direction || result === null) return;
    event.preventDefault();
    const side = Math.max(result.width, result.height);
    const step = Math.max(1, Math.round(side * (event.shiftKey ? LARGE_STEP : STEP)));
    const from = point ?? { x: (result.width - 1) / 2, y: (result.height - 1) / 2 };
    movePoint(Math.round(from.x) + direction[0] * step, Math.round(from.y) + direction[1] * step);
  });
  for (const id of ["field", "magnify"]) element(id).addEventListener("change", showPoint);
}

async function download() {
  try {
    const response = await ask("/v1/segment?format=classes", { method: "POST", body: sent.blob });
    save(await response.blob(), `${sent.name.replace(/\.[^.]*$/, "")}_classes.png`);
  } catch (error) {
    showError(error);
  }
}

setUpOpacity();
setUpChoosing((file) => segment(file, file.name));
setUpStage();
element("camera").addEventListener("click", startCamera);
element("camera-off").addEventListener("click", stopCamera);
element("shoot").addEventListener("click", shoot);
element("download").addEventListener("click", download);
element("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = element("token").value.trim();
  asked = loadModel();
});
asked = loadModel();
