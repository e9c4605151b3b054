// A converted ticket in the browser: loading, what goes in, what comes out. page.js draws it.
import {loadAndCompile, loadLiteRt, Tensor} from './build/litert.js';

const BUILD = new URL('./build/', import.meta.url);
let runtime;

/** Return what build.py says of the tickets, by their names on the page. */
export async function about() {
  return (await fetch(new URL('models.json', BUILD))).json();
}

/** Load a .tflite file of the build folder. */
export async function load(file) {
  runtime ??= loadLiteRt(new URL('wasm/', BUILD).href);
  await runtime;
  return loadAndCompile(new URL(file, BUILD).href, {accelerator: 'wasm'});
}

/** Return the logits for inputs, a Float32Array, of a shape with a batch of one. */
export async function logits(model, inputs, shape) {
  const tensor = new Tensor(inputs, shape);
  const [result] = await model.run(tensor);
  const values = Float32Array.from(result.toTypedArray());
  tensor.delete();
  result.delete();
  return values;
}

/** Return the median milliseconds of one run, after a warm-up. */
export async function milliseconds(model, inputs, shape, times = 15) {
  await logits(model, inputs, shape);
  const found = [];
  for (let i = 0; i < times; i++) {
    const start = performance.now();
    await logits(model, inputs, shape);
    found.push(performance.now() - start);
  }
  return found.sort((a, b) => a - b)[times >> 1];
}

/** Return probabilities. */
export function softmax(values) {
  const most = Math.max(...values);
  const powers = Array.from(values, value => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map(power => power / sum);
}

/** Return the pixels of a canvas as a network takes them: (pixel / 255 - mean) / std, channels last. */
export function normalized(canvas, {shape, mean, std}) {
  const [, height, width, channels] = shape;
  const {data} = canvas.getContext('2d', {willReadFrequently: true}).getImageData(0, 0, width, height);
  const inputs = new Float32Array(height * width * channels);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < channels; c++) {
      inputs[channels * i + c] = (Math.fround(data[4 * i + c] / 255) - mean[c]) / std[c];
    }
  }
  return inputs;
}

/**
 * Return what is drawn on a canvas, in black on transparent, as 8x8 inputs from -1 to 1. As the digits of the data set
 * were made: the drawing fills 32x32 pixels, each input counts the black ones of 4x4.
 */
export function digit(canvas) {
  const source = canvas.getContext('2d', {willReadFrequently: true});
  const {data} = source.getImageData(0, 0, canvas.width, canvas.height);
  let left = canvas.width, right = -1, top = canvas.height, bottom = -1;
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      if (data[4 * (y * canvas.width + x) + 3] > 127) {
        left = Math.min(left, x);
        right = Math.max(right, x);
        top = Math.min(top, y);
        bottom = Math.max(bottom, y);
      }
    }
  }
  const inputs = new Float32Array(64).fill(-1);
  if (right < left) return inputs;
  const small = document.createElement('canvas');
  small.width = small.height = 32;
  const target = small.getContext('2d', {willReadFrequently: true});
  const [width, height] = [right - left + 1, bottom - top + 1];
  const scale = 30 / Math.max(width, height);
  const [w, h] = [Math.max(4, scale * width), Math.max(4, scale * height)];
  target.drawImage(canvas, left, top, width, height, (32 - w) / 2, (32 - h) / 2, w, h);
  const drawn = target.getImageData(0, 0, 32, 32).data;
  for (let y = 0; y < 32; y++) {
    for (let x = 0; x < 32; x++) {
      if (drawn[4 * (32 * y + x) + 3] > 127) inputs[8 * (y >> 2) + (x >> 2)] += 1 / 8;
    }
  }
  return inputs;
}
