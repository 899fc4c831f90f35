"use strict";
/** A spectrogram on the page, which grows and moves. */
class View {
  static tile = 1000; // columns of a picture that is kept

  static colours = (() => {
    const stops = [[6, 10, 24], [22, 38, 84], [14, 100, 122], [40, 172, 142], [216, 200, 96], [255, 250, 226]];
    return Array.from({ length: 256 }, (_, i) => {
      const place = (i / 255) * (stops.length - 1);
      const [low, high] = [stops[Math.floor(place)], stops[Math.min(stops.length - 1, Math.floor(place) + 1)]];
      return low.map((value, c) => value + (high[c] - value) * (place % 1));
    });
  })();

  constructor(canvas) {
    this.canvas = canvas;
    this.clear(48000);
  }

  clear(rate) {
    this.rate = rate;
    this.columns = 0;
    this.tiles = [];
  }

  add(columns) {
    const rows = Spectrogram.rows;
    for (let at = 0; at < columns.length; at += rows) {
      const inTile = this.columns % View.tile;
      if (inTile === 0) this.tiles.push(Object.assign(document.createElement("canvas"), { width: View.tile, height: rows }));
      const context = this.tiles.at(-1).getContext("2d");
      const image = context.createImageData(1, rows);
      for (let row = 0; row < rows; row++) {
        const [r, g, b] = View.colours[columns[at + row]];
        image.data.set([r, g, b, 255], 4 * (rows - 1 - row));
      }
      context.putImageData(image, inTile, 0);
      this.columns++;
    }
  }

  /** Draws what lies between two times, in seconds, and a line at a third, unless that is null; `told`: with times. */
  draw(begin, end, at, told) {
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    const x = (time) => ((time - begin) / (end - begin)) * width;
    context.clearRect(0, 0, width, height);
    const seconds = View.tile / Spectrogram.perSecond;
    this.tiles.forEach((tile, i) => {
      const last = Math.min(View.tile, this.columns - i * View.tile);
      const [from, to] = [i * seconds, i * seconds + last / Spectrogram.perSecond];
      if (to > begin && from < end) context.drawImage(tile, 0, 0, last, tile.height, x(from), 0, x(to) - x(from), height);
    });
    this.label(context, width, height, ratio);
    if (told) this.tellTime(context, width, height, ratio, begin, end, x);
    context.shadowBlur = 0;
    if (at !== null) {
      context.fillStyle = "#fff";
      context.fillRect(Math.round(x(at)) - ratio, 0, 2 * ratio, height);
    }
  }

  label(context, width, height, ratio) {
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    context.shadowColor = "#000";
    context.shadowBlur = 3 * ratio;
    context.fillStyle = "#ffffffd9";
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const hz of [500, 2000, 8000, 16000])
      if (hz < this.rate / 2) {
        const y = height * (1 - Spectrogram.height(hz, this.rate));
        if (y > 8 * ratio)
          context.fillText(hz < 1000 ? `${hz} Hz` : `${hz / 1000} kHz`, width - 6 * ratio, Math.max(y, 9 * ratio));
      }
  }

  tellTime(context, width, height, ratio, begin, end, x) {
    context.textAlign = "center";
    context.textBaseline = "bottom";
    const step = [0.5, 1, 2, 5, 10].find((one) => (one / (end - begin)) * width > 55 * ratio) ?? 20;
    for (let time = Math.max(step, Math.ceil(begin / step) * step); time < end; time += step)
      if (x(time) > 12 * ratio && x(time) < width - 60 * ratio) context.fillText(`${+time.toFixed(1)} s`, x(time), height - 3 * ratio);
  }
}
