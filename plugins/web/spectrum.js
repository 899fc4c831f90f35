"use strict";
/** Columns of a spectrogram, of sound that comes in pieces: 100 a second, each of `Spectrogram.rows` bytes from the
 * lowest frequency to the highest, on the mel scale; 0 is 90 dB below full scale, 255 is 10 dB below. */
class Spectrogram {
  static rows = 128;
  static perSecond = 100;

  constructor(rate) {
    this.step = Math.round(rate / Spectrogram.perSecond);
    this.size = 1 << Math.round(Math.log2(rate / 32));
    this.kept = new Float32Array(this.size);
    this.filled = this.size / 2; // the first column is centred on the first sample
    this.window = Float32Array.from({ length: this.size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / this.size));
    this.cosine = Float32Array.from({ length: this.size / 2 }, (_, i) => Math.cos((2 * Math.PI * i) / this.size));
    this.sine = Float32Array.from({ length: this.size / 2 }, (_, i) => -Math.sin((2 * Math.PI * i) / this.size));
    this.re = new Float32Array(this.size);
    this.im = new Float32Array(this.size);
    const edges = Array.from({ length: Spectrogram.rows + 1 }, (_, i) => Spectrogram.hz(i / Spectrogram.rows, rate));
    this.bins = edges.map((hz) => (hz * this.size) / rate);
  }

  /** Frequency at a height, 0 to 1; at most 20 kHz. */
  static hz(height, rate) {
    const [low, high] = [50, Math.min(rate / 2, 20000)].map((hz) => Math.log1p(hz / 700));
    return 700 * Math.expm1(low + height * (high - low));
  }

  /** Height of a frequency, 0 to 1. */
  static height(hz, rate) {
    const [low, high, place] = [50, Math.min(rate / 2, 20000), hz].map((value) => Math.log1p(value / 700));
    return (place - low) / (high - low);
  }

  /** Columns that these samples complete, one after another. */
  add(samples) {
    const columns = [];
    for (let at = 0; at < samples.length; ) {
      const n = Math.min(this.size - this.filled, samples.length - at);
      this.kept.set(samples.subarray(at, at + n), this.filled);
      this.filled += n;
      at += n;
      if (this.filled === this.size) {
        columns.push(this.column());
        this.kept.copyWithin(0, this.step);
        this.filled -= this.step;
      }
    }
    const all = new Uint8Array(columns.length * Spectrogram.rows);
    columns.forEach((column, i) => all.set(column, i * Spectrogram.rows));
    return all;
  }

  column() {
    this.transform();
    const column = new Uint8Array(Spectrogram.rows);
    const full = this.size / 4; // of a sine at full scale, in this window
    for (let row = 0; row < column.length; row++) {
      const [low, high] = [this.bins[row], this.bins[row + 1]];
      let most = 0;
      for (let bin = Math.max(1, Math.round(low)); bin <= Math.max(Math.round(low), Math.floor(high)); bin++)
        most = Math.max(most, this.re[bin] ** 2 + this.im[bin] ** 2);
      const level = 10 * Math.log10(most / full ** 2 + 1e-12);
      column[row] = Math.max(0, Math.min(255, ((level + 90) / 80) * 255));
    }
    return column;
  }

  /** Transform of the kept samples (radix 2), in `re` and `im`. */
  transform() {
    const { size, re, im } = this;
    for (let i = 0, j = 0; i < size; i++) {
      re[j] = this.kept[i] * this.window[i];
      im[j] = 0;
      let bit = size >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j |= bit;
    }
    for (let length = 2; length <= size; length *= 2)
      for (let group = 0; group < size; group += length)
        for (let i = 0; i < length / 2; i++) {
          const [c, s] = [this.cosine[(i * size) / length], this.sine[(i * size) / length]];
          const [a, b] = [group + i, group + i + length / 2];
          const [x, y] = [re[b] * c - im[b] * s, re[b] * s + im[b] * c];
          re[b] = re[a] - x;
          im[b] = im[a] - y;
          re[a] += x;
          im[a] += y;
        }
  }
}
