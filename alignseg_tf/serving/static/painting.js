// What both pages do: an image, its classes over it, and the table of classes.

/** An error with words for whoever uses the page, and details for whoever asks. */
export class PlainError extends Error {
  constructor(text, detail = "") {
    super(text);
    this.detail = detail;
  }
}

export const element = (id) => document.getElementById(id);

/** Say what is going on; screen readers hear it. */
export function say(text, working = false) {
  element("status").textContent = text;
  element("status").classList.toggle("working", working);
}

/** Show an error, or none. */
export function showError(error) {
  element("error").hidden = error === null;
  element("error-text").textContent = error === null ? "" : error.message;
  const detail = error?.detail ?? "";
  element("error-detail").textContent = detail;
  element("error-detail").hidden = detail === "";
  if (error !== null) say("");
}

/** Decode an image, upright; null if this browser cannot. */
export async function decode(blob) {
  try {
    return await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    return null;
  }
}

/** Give the canvases of the stage a size, and draw the image into the first. */
export function showImage(bitmap, width, height) {
  for (const canvas of element("stage").querySelectorAll("canvas")) {
    canvas.width = width;
    canvas.height = height;
  }
  if (bitmap !== null) element("image").getContext("2d").drawImage(bitmap, 0, 0, width, height);
}

/**
 * Paint class ids in the colours of their classes.
 * classMap: a Uint8Array, row by row; palette: [red, green, blue] by id.
 */
export function paintMask(classMap, width, height, palette) {
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const colors = new Uint32Array(256); // without a class: transparent
  const bytes = new Uint8Array(colors.buffer);
  palette.forEach((color, id) => bytes.set([...color, 255], 4 * id));
  for (let i = 0; i < pixels.length; i++) pixels[i] = colors[classMap[i]];
  element("mask").getContext("2d").putImageData(image, 0, 0);
}

/** Fill the table: entries of {name, color, share}, the largest share first. */
export function showLegend(entries) {
  const rows = [...entries].sort((a, b) => b.share - a.share).map(({ name, color, share }) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.backgroundColor = `rgb(${color.join(" ")})`;
    head.append(swatch, name);
    const number = document.createElement("td");
    number.className = "number";
    number.textContent = percent(share);
    row.append(head, number);
    return row;
  });
  element("legend").replaceChildren(...rows);
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Make the slider work. */
export function setUpOpacity() {
  const slider = element("opacity");
  const update = () => {
    element("mask").style.opacity = String(slider.value / 100);
    element("opacity-text").value = `${slider.value} %`;
  };
  slider.addEventListener("input", update);
  update();
}

/** Call `use` with an image that is chosen, dropped or pasted. */
export function setUpChoosing(use) {
  const drop = element("drop");
  const file = element("file");
  element("choose").addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files.length) use(file.files[0]);
    file.value = ""; // the same one may be chosen again
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    useFirst(event.dataTransfer.files, use);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) useFirst(event.clipboardData.files, use);
  });
}

function useFirst(files, use) {
  if (files.length === 1) use(files[0]);
  else showError(new PlainError("Please give one file at a time."));
}

/** Let the user save bytes as a file. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
