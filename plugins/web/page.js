"use strict";
const element = (id) => document.getElementById(id);
const NO_LIMIT = 41; // end of the slider
const SHOWN_SECONDS = 12; // of a longer recording, and of a microphone
const MOST_LIVE_SECONDS = 600;

const views = { before: new View(element("before")), after: new View(element("after")) };
const engine = { wasm: bytes(ENGINE.wasm), weights: bytes(ENGINE.weights) };

let context = null; // for playing and for the microphone, from the first touch on
let sound = null; // { name, rate, before, after, live }: channels
let worker = null;
let player = null; // { sources, gains, started, from }
let live = null; // { stream, node, gains, before, after, views, latency }
let place = 0; // seconds

function tell(text, wrong = false) {
  element("status").textContent = text;
  element("status").classList.toggle("wrong", wrong);
}

function side() {
  return document.querySelector("input[name=side]:checked").value;
}

function limit() {
  const value = +element("limit").value;
  return value >= NO_LIMIT ? 100 : value;
}

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

function duration() {
  if (live) return live.seconds;
  return sound ? sound.before[0].length / sound.rate : 0;
}

async function started() {
  context ??= new AudioContext();
  if (context.state === "suspended") await context.resume();
  return context;
}

/* A recording. */

async function take(name, file) {
  await stop();
  pause();
  tell(`Reading ${name} …`);
  try {
    const { rate, channels } = await decoded(file);
    if (!channels[0].length) throw new Error("it holds no sound");
    show({ name, rate, before: channels, after: null, live: false });
  } catch (error) {
    const why = error.name === "EncodingError" ? "this browser cannot decode it; WAV, FLAC and MP3 are sure" : error.message;
    tell(`${name}: ${why}.`, true);
  }
}

function show(next) {
  sound = next;
  place = 0;
  element("sound").hidden = false;
  for (const view of Object.values(views)) view.clear(sound.rate);
  const many = sound.before.length;
  element("format").textContent = `${sound.rate / 1000} kHz, ${many === 1 ? "mono" : many === 2 ? "stereo" : `${many} channels`}`;
  enhance();
}

/** Enhances the recording; both spectrograms grow meanwhile. */
function enhance() {
  worker?.terminate();
  element("play").disabled = true;
  element("download").hidden = element("original").hidden = true;
  for (const view of Object.values(views)) view.clear(sound.rate);
  const text = script(Edgese, Spectrogram, mixed, enhanceFile);
  worker = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
  worker.onerror = ({ message }) => tell(`${sound.name}: ${message}.`, true);
  worker.onmessage = ({ data }) => {
    if (data.error) return tell(`${sound.name}: ${data.error}.`, true);
    if (data.columns) {
      views.before.add(data.columns[0]);
      views.after.add(data.columns[1]);
      tell(`Enhancing ${sound.name}: ${Math.floor(100 * data.done)} %`);
      showLoad(data.load);
      draw();
      return undefined;
    }
    sound.after = data.enhanced;
    showLoad(data.load);
    const faster = 1 / data.load;
    tell(`${sound.name} is enhanced, ${faster < 10 ? faster.toFixed(1) : Math.round(faster)} times faster than it plays.`);
    offer("download", sound.after, "enhanced");
    if (sound.live) offer("original", sound.before, "original");
    element("play").disabled = false;
    draw();
    return undefined;
  };
  const { before: channels, rate } = sound;
  worker.postMessage({ engine, channels, rate, limit: limit() });
}

function offer(id, channels, what) {
  const link = element(id);
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(wavFile(channels, sound.rate));
  link.download = `${sound.name.replace(/\.[^.]*$/, "")} ${what}.wav`;
  link.hidden = false;
}

function showLoad(load) {
  element("load").value = load;
  element("load-told").textContent = `${(100 * load).toFixed(load < 0.1 ? 1 : 0)} %`;
}

/* Playing. */

async function play() {
  if (!sound?.after) return;
  await started();
  pause();
  if (place >= duration() - 0.05) place = 0;
  player = { from: place, started: context.currentTime + 0.03, sources: [], gains: {} };
  for (const which of ["before", "after"]) {
    const buffer = context.createBuffer(sound.before.length, sound.before[0].length, sound.rate);
    sound[which].forEach((channel, i) => buffer.copyToChannel(channel, i));
    const source = new AudioBufferSourceNode(context, { buffer });
    player.gains[which] = new GainNode(context, { gain: which === side() ? 1 : 0 });
    source.connect(player.gains[which]).connect(context.destination);
    source.start(player.started, place);
    player.sources.push(source);
  }
  element("play").classList.add("on");
  element("play").ariaLabel = "Pause";
  move();
}

function pause() {
  if (!player) return;
  place = played();
  for (const source of player.sources) source.stop();
  player = null;
  element("play").classList.remove("on");
  element("play").ariaLabel = "Play";
}

/** Second that is heard now. */
function played() {
  const heard = context.currentTime - player.started - (context.outputLatency || 0);
  return Math.min(duration(), Math.max(player.from, player.from + heard));
}

function choose() {
  const gains = player?.gains ?? live?.gains;
  if (!gains) return;
  for (const [which, gain] of Object.entries(gains)) {
    const heard = which === side() && (!live || element("monitor").querySelector("input").checked);
    gain.gain.setTargetAtTime(heard ? 1 : 0, context.currentTime, 0.01);
  }
}

/* The microphone. */

async function listen() {
  pause();
  worker?.terminate();
  tell("Waiting for the microphone …");
  const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: raw });
    await started();
    if (!context.edgese) {
      // a page from a disk may load a module from its own text only
      await context.audioWorklet.addModule(`data:text/javascript,${encodeURIComponent(script(Edgese, enhanceLive))}`);
      context.edgese = true;
    }
  } catch (error) {
    for (const track of stream?.getTracks() ?? []) track.stop();
    const why = error.name === "NotAllowedError" ? "this page may not use it; allow it in the browser's settings" : error.message;
    return tell(`Microphone: ${why}.`, true);
  }
  const rate = context.sampleRate;
  const node = new AudioWorkletNode(context, "edgese", { outputChannelCount: [1], processorOptions: { engine, limit: limit() } });
  live = { stream, node, seconds: 0, load: 0, before: [], after: [], latency: 0, gains: {} };
  live.pictures = { before: new Spectrogram(rate), after: new Spectrogram(rate) };
  const source = context.createMediaStreamSource(stream);
  source.connect(node);
  live.gains = { before: new GainNode(context, { gain: 0 }), after: new GainNode(context, { gain: 0 }) };
  source.connect(live.gains.before).connect(context.destination);
  node.connect(live.gains.after).connect(context.destination);
  node.onprocessorerror = () => stop().then(() => tell("The microphone's sound could not be enhanced.", true));
  node.port.onmessage = ({ data }) => heard(data);
  sound = null;
  place = 0;
  for (const view of Object.values(views)) view.clear(rate);
  element("sound").hidden = false;
  element("format").textContent = `${rate / 1000} kHz, mono`;
  element("download").hidden = element("original").hidden = true;
  element("monitor").hidden = false;
  element("play").hidden = element("place").hidden = true;
  element("microphone").ariaPressed = "true";
  element("microphone").querySelector("span").textContent = "Stop";
  choose();
  tell("Listening. Speak, and see what is left of the noise.");
  return move();
}

function heard(data) {
  if (!live) return;
  if (data.latency !== undefined) {
    live.latency = data.latency;
    return;
  }
  for (const which of ["before", "after"]) {
    live[which].push(data[which]);
    views[which].add(live.pictures[which].add(data[which]));
  }
  live.seconds += data.before.length / context.sampleRate;
  live.load += Math.max(0.05, 1 / live.before.length) * (data.load - live.load); // a second's mean
  showLoad(live.load);
  if (live.seconds >= MOST_LIVE_SECONDS) stop();
}

/** Ends the microphone; what it heard becomes a recording, its two sides aligned. */
async function stop() {
  if (!live) return;
  const { stream, node, before, after, latency } = live;
  for (const track of stream.getTracks()) track.stop();
  node.port.postMessage({ stop: true });
  node.disconnect();
  for (const gain of Object.values(live.gains)) gain.disconnect();
  live = null;
  element("microphone").ariaPressed = "false";
  element("microphone").querySelector("span").textContent = "Speak";
  element("monitor").hidden = true;
  element("play").hidden = element("place").hidden = false;
  const whole = (pieces) => {
    const joined = new Float32Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
    pieces.reduce((at, piece) => (joined.set(piece, at), at + piece.length), 0);
    return joined;
  };
  const n = before.reduce((sum, piece) => sum + piece.length, 0) - latency;
  if (n <= 0) return tell("Nothing was heard.", true);
  sound = { name: "Microphone", rate: context.sampleRate, live: true };
  sound.before = [whole(before).subarray(0, n)];
  sound.after = [whole(after).subarray(latency)];
  for (const [which, view] of Object.entries(views)) {
    view.clear(sound.rate);
    view.add(new Spectrogram(sound.rate).add(sound[which][0]));
  }
  offer("download", sound.after, "enhanced");
  offer("original", sound.before, "original");
  element("play").disabled = false;
  tell("Recorded: play it, before and after.");
  draw();
}

/* Pictures. */

function draw() {
  const whole = duration();
  const now = player ? played() : live ? whole : place;
  const shown = live ? SHOWN_SECONDS / 2 : Math.min(SHOWN_SECONDS * 2, Math.max(1, whole));
  const end = live ? whole : Math.min(Math.max(whole, shown), Math.max(shown, now + shown / 2));
  for (const [which, view] of Object.entries(views)) view.draw(end - shown, end, live ? null : now, which === "after");
  element("time").textContent = live ? clock(whole) : `${clock(now)} / ${clock(whole)}`;
  const slider = element("place");
  slider.max = whole;
  slider.value = now;
  slider.ariaValueText = `${clock(now)} of ${clock(whole)}`;
  return [end - shown, end];
}

function move() {
  if (!player && !live) return;
  draw();
  if (player && played() >= duration()) {
    pause();
    place = 0;
    draw();
    return;
  }
  requestAnimationFrame(move);
}

function seek(seconds) {
  const playing = player !== null;
  pause();
  place = Math.max(0, Math.min(duration(), seconds));
  if (playing) play();
  else draw();
}

/* What is touched. */

element("file").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  if (file) await take(file.name, await file.arrayBuffer());
  target.value = "";
});
element("sample").addEventListener("click", () => take("The sample", bytes(ENGINE.sample).buffer));
element("microphone").addEventListener("click", () => (live ? stop() : listen()));
element("play").addEventListener("click", () => {
  if (player) {
    pause();
    draw();
  } else play();
});
element("place").addEventListener("input", ({ target }) => seek(+target.value));
for (const button of document.querySelectorAll("input[name=side]")) button.addEventListener("change", choose);
element("monitor").addEventListener("change", choose);
element("limit").addEventListener("input", () => {
  element("limit-told").textContent = limit() === 100 ? "no limit" : `${limit()} dB`;
  live?.node.port.postMessage({ limit: limit() });
});
element("limit").addEventListener("change", () => {
  if (live || !sound) return;
  pause();
  enhance();
});
for (const view of Object.values(views))
  view.canvas.addEventListener("click", ({ offsetX }) => {
    if (live || !sound) return;
    const [begin, end] = draw();
    seek(begin + (offsetX / view.canvas.clientWidth) * (end - begin));
  });
addEventListener("resize", draw);
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", () => document.body.classList.remove("over"));
addEventListener("drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) await take(file.name, await file.arrayBuffer());
});

try {
  const { latency } = new Edgese(engine, 48000, 1, 128);
  element("delay").textContent = `${(latency / 48).toFixed(0)} ms + your device`;
  element("about").textContent = `MBS-Net in WebAssembly: ${Math.round(engine.weights.length / 1000)} kB of weights, ${Math.round(engine.wasm.length / 1000)} kB of code. No server, no cookies: what you play here stays here.`;
} catch (error) {
  tell(`This browser cannot run it: ${error.message}. It needs WebAssembly with SIMD (any browser since 2023).`, true);
  for (const button of document.querySelectorAll("#sources button, #file")) button.disabled = true;
}
