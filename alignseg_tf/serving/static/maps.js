// From the output of a model to class ids of an image's size, as `alignseg_tf.Predictor` does it.

/** Height and width of a tensor [1, height, width, ...]. */
export const sizesOf = ([, height, width]) => ({ height, width });

/**
 * Return class ids, a Uint8Array, row by row.
 * output: {data, shape} of the model, logits [1, h, w, classes] or class ids [1, h, w];
 * input: size of what it got; size: of the image.
 */
export function classMapOf(output, input, size) {
  return output.shape.length === 4 ? fromLogits(output, input, size) : fromIds(output, size);
}

/** The nearest id; pixels are compared by their centres. */
function fromIds({ data, shape }, { width, height }) {
  const { height: rows, width: columns } = sizesOf(shape);
  const column = Int32Array.from({ length: width }, (_, x) => Math.floor((x + 0.5) * columns / width));
  const classMap = new Uint8Array(width * height);
  for (let y = 0, i = 0; y < height; y++) {
    const start = Math.floor((y + 0.5) * rows / height) * columns;
    for (let x = 0; x < width; x++) classMap[i++] = data[start + column[x]];
  }
  return classMap;
}

/** The largest of bilinearly interpolated logits. */
function fromLogits({ data, shape }, input, { width, height }) {
  const classes = shape[3];
  const { height: rows, width: columns } = sizesOf(shape);
  const vertical = places(height, input.height, rows);
  const horizontal = places(width, input.width, columns);
  const classMap = new Uint8Array(width * height);
  const row = new Float32Array(columns * classes); // logits between two rows
  for (let y = 0, i = 0; y < height; y++) {
    const above = vertical.index[y] * columns * classes;
    const below = Math.min(vertical.index[y] + 1, rows - 1) * columns * classes;
    const down = vertical.share[y];
    for (let k = 0; k < row.length; k++) {
      row[k] = data[above + k] * (1 - down) + data[below + k] * down;
    }
    for (let x = 0; x < width; x++) {
      const left = horizontal.index[x] * classes;
      const right = Math.min(horizontal.index[x] + 1, columns - 1) * classes;
      const across = horizontal.share[x];
      let best = -Infinity;
      let id = 0;
      for (let k = 0; k < classes; k++) {
        const value = row[left + k] * (1 - across) + row[right + k] * across;
        if (value > best) {
          best = value;
          id = k;
        }
      }
      classMap[i++] = id;
    }
  }
  return classMap;
}

/**
 * Where each of `count` pixels of the image falls among `cells` of logits: half-pixel centres lead
 * to the model's input of `side` pixels, whose outer pixels are the outer cells.
 */
function places(count, side, cells) {
  const index = new Int32Array(count);
  const share = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const pixel = Math.min(Math.max((i + 0.5) * side / count - 0.5, 0), side - 1);
    const cell = side > 1 ? pixel * (cells - 1) / (side - 1) : 0;
    index[i] = Math.min(Math.floor(cell), cells - 1);
    share[i] = cell - index[i];
  }
  return { index, share };
}
