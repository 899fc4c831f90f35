"use strict";
/* The network in this page: the WebAssembly module around edgese_live, the worker that enhances files with it, and the
 * processor that enhances a microphone. The functions below are passed to worker and worklet as text, so that the page
 * also works from a disk, where no script may be fetched. */

/** Sound of any rate (16 kHz or more), whole band, as edgese_live.h says; throws an Error with its text. */
class Edgese {
  /**
   * @param {{wasm: BufferSource, weights: Uint8Array}} engine
   * @param {number} rate in Hz
   * @param {number} channels
   * @param {number} most samples of a call
   */
  constructor(engine, rate, channels, most) {
    // what the C library's printf would write goes nowhere
    const nothing = new Proxy({}, { get: () => () => 0 });
    const imports = new Proxy({}, { get: () => nothing });
    this.c = new WebAssembly.Instance(new WebAssembly.Module(engine.wasm), imports).exports;
    this.c._initialize?.();
    const error = this.c.malloc(256);
    const file = this.c.malloc(engine.weights.length);
    new Uint8Array(this.c.memory.buffer).set(engine.weights, file);
    const weights = this.c.edgese_open_memory(file, engine.weights.length, error);
    this.c.free(file);
    this.live = weights && this.c.edgese_live_start(weights, rate, channels, 0, error);
    if (!this.live) {
      const text = new Uint8Array(this.c.memory.buffer, error, 256);
      throw new Error(String.fromCharCode(...text.subarray(0, text.indexOf(0))));
    }
    this.channels = channels;
    this.most = most;
    this.latency = this.c.edgese_live_latency(this.live);
    this.pointers = this.c.malloc(4 * channels);
    this.sound = this.c.malloc(4 * channels * most);
    for (let i = 0; i < channels; i++)
      new Uint32Array(this.c.memory.buffer, this.pointers)[i] = this.sound + 4 * most * i;
  }

  /** Samples of a channel in the module's memory: input before, output after `run`. Memory that grows moves them. */
  samples(channel, n) {
    return new Float32Array(this.c.memory.buffer, this.sound + 4 * this.most * channel, n);
  }

  /** Enhances n samples of each channel in place; nothing is attenuated by more than limit dB, from 100 on: no limit. */
  run(n, limit) {
    this.c.edgese_live_process(this.live, this.pointers, this.pointers, n, limit, 1);
  }
}

/** Body of the worker: enhances a recording and draws both, piece by piece. */
function enhanceFile() {
  onmessage = ({ data: { engine, channels, rate, limit } }) => {
    try {
      const n = channels[0].length;
      const piece = Math.round(rate / 4);
      const edgese = new Edgese(engine, rate, channels.length, piece);
      const enhanced = channels.map(() => new Float32Array(n));
      const pictures = [new Spectrogram(rate), new Spectrogram(rate)];
      let busy = 0;
      for (let at = 0; at < n + edgese.latency; at += piece) {
        channels.forEach((channel, i) => {
          const part = edgese.samples(i, piece);
          part.fill(0);
          part.set(channel.subarray(at, at + piece));
        });
        const start = performance.now();
        edgese.run(piece, limit);
        busy += performance.now() - start;
        const from = at - edgese.latency;
        enhanced.forEach((channel, i) => {
          const part = edgese.samples(i, piece).subarray(Math.max(0, -from), Math.max(0, n - from));
          channel.set(part, Math.max(0, from));
        });
        const columns = [channels, enhanced].map((sides, i) => {
          const [begin, end] = i ? [Math.max(0, from), from + piece] : [at, at + piece];
          return pictures[i].add(mixed(sides, begin, Math.min(n, end)));
        });
        postMessage({ done: Math.min(1, (at + piece) / n), columns, load: busy / 1000 / (Math.min(n, at + piece) / rate) });
      }
      postMessage({ enhanced, load: busy / 1000 / (n / rate) }, enhanced.map((channel) => channel.buffer));
    } catch (error) {
      postMessage({ error: error.message });
    }
  };
}

/** Mean of the channels between two samples. */
function mixed(channels, begin, end) {
  const sum = new Float32Array(Math.max(0, end - begin));
  for (const channel of channels) for (let i = 0; i < sum.length; i++) sum[i] += channel[begin + i] / channels.length;
  return sum;
}

/** Body of the worklet: what comes in and what goes out, in messages of a twentieth of a second. */
function enhanceLive() {
  const now = globalThis.performance ? () => performance.now() : Date.now; // whole milliseconds are right in the mean
  registerProcessor(
    "edgese",
    class extends AudioWorkletProcessor {
      constructor({ processorOptions: { engine, limit } }) {
        super();
        this.edgese = new Edgese(engine, sampleRate, 1, 128);
        this.limit = limit;
        this.size = Math.round(sampleRate / 20 / 128) * 128;
        this.on = true;
        this.next();
        this.port.onmessage = ({ data }) => {
          if (data.limit !== undefined) this.limit = data.limit;
          if (data.stop) this.on = false;
        };
        this.port.postMessage({ latency: this.edgese.latency });
      }

      next() {
        this.before = new Float32Array(this.size);
        this.after = new Float32Array(this.size);
        this.filled = 0;
        this.busy = 0;
      }

      process([input], [output]) {
        const start = now();
        const n = output[0].length;
        for (let at = 0; at < n; at += 128) {
          const part = this.edgese.samples(0, 128);
          if (input.length) part.set(input[0].subarray(at, at + 128));
          else part.fill(0);
          this.before.set(part, this.filled);
          this.edgese.run(128, this.limit);
          const done = this.edgese.samples(0, 128);
          for (const channel of output) channel.set(done, at);
          this.after.set(done, this.filled);
          this.filled += 128;
          if (this.filled === this.size) {
            this.busy += now() - start;
            const load = this.busy / 1000 / (this.size / sampleRate);
            this.port.postMessage({ before: this.before, after: this.after, load }, [this.before.buffer, this.after.buffer]);
            this.next();
            return this.on;
          }
        }
        this.busy += now() - start;
        return this.on;
      }
    },
  );
}

/** Text of a script that holds these functions and runs the last one. */
function script(...parts) {
  return `"use strict";\n${parts.map(String).join("\n")}\n(${parts.at(-1).name})();`;
}
