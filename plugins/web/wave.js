"use strict";
/* Recordings in and out. */

/** Bytes of what engine.js holds as text. */
function bytes(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

/** Samples a second of a WAV or FLAC file, which a browser would convert to another rate; 0 for other files. */
function rateOf(file) {
  const view = new DataView(file);
  const text = (at) => (at + 4 <= file.byteLength ? String.fromCharCode(...new Uint8Array(file, at, 4)) : "");
  if (text(0) === "fLaC" && file.byteLength > 21) return (view.getUint16(18) << 4) | (view.getUint8(20) >> 4);
  if (text(0) !== "RIFF" || text(8) !== "WAVE") return 0;
  for (let at = 12; at + 16 <= file.byteLength; at += 8 + view.getUint32(at + 4, true) + (view.getUint32(at + 4, true) & 1))
    if (text(at) === "fmt ") return view.getUint32(at + 12, true);
  return 0;
}

/** Sound of a file that the browser can decode: channels, (n) float32 each, and their rate, from 16 to 192 kHz. */
async function decoded(file) {
  const rate = Math.max(16000, Math.min(192000, rateOf(file) || 48000));
  const sound = await new OfflineAudioContext(1, 1, rate).decodeAudioData(file);
  return { rate, channels: Array.from({ length: sound.numberOfChannels }, (_, i) => sound.getChannelData(i)) };
}

/** WAV file of 16 bits. */
function wavFile(channels, rate) {
  const n = channels[0].length;
  const view = new DataView(new ArrayBuffer(44 + 2 * n * channels.length));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, view.byteLength - 8, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, channels.length, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate * channels.length, true);
  view.setUint16(32, 2 * channels.length, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * n * channels.length, true);
  for (let i = 0, at = 44; i < n; i++)
    for (const channel of channels) {
      view.setInt16(at, Math.max(-32768, Math.min(32767, Math.round(channel[i] * 32768))), true);
      at += 2;
    }
  return new Blob([view], { type: "audio/wav" });
}
