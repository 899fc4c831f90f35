"""Sound's way from a microphone's callbacks to a loudspeaker's, without the devices.

    hear (callback) -> ring -> work (thread): enhance, choose, stretch -> ring -> say (callback)

Callbacks copy frames and note the time, no more. Two devices have two clocks: what waits for the loudspeaker would grow
or run out within minutes. So the least that was left after a callback of the loudspeaker, in two seconds, is held at
`reserve_ms`, by blocks that are a sample longer or shorter (edgese/listen/stretch.py); more than 100 ms too much, as
after a machine's standstill, is skipped at once. So the delay does not grow. Where the loudspeaker finds too little all
the same, the reserve becomes 10 ms more, and that again less by 15 ms in each minute in which all is well.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from edgese.audio import Samples
from edgese.audio.frame_queue import FrameQueue
from edgese.listen.ring import Ring
from edgese.listen.stretch import DELAY, Stretch
from edgese.live.stream import Stream

RING_S = 1.0
MOST_S = 0.1  # of sound in one turn of the work
WINDOW_S = 2.0
DEADBAND_S = 0.001
MOST_STRETCH = 1 / 200  # of a block: inaudible, and 50 times what clocks differ by
SKIP_S = 0.1
MORE_S, MOST_MORE_S, LESS_S = 0.01, 0.2, 0.0005  # of reserve: at a dropout, at most, at the end of a window without one
FADE_S = 0.01  # from before to after and back
FALL_DB_S = 20.0  # of the meters
FLOOR_DB = -90.0

Record = Callable[[Samples, Samples], None]


@dataclasses.dataclass(frozen=True)
class Latency:
    """From the microphone's air to the loudspeaker's, measured by the devices' own times; seconds, parts of the total.

    Attributes:
        input_s: until the microphone's samples were handed over.
        algorithm_s: by which the enhanced sound runs behind.
        buffers_s: waiting between the two devices, and computing.
        output_s: from handing samples to the loudspeaker until they sound.
    """

    input_s: float
    algorithm_s: float
    buffers_s: float
    output_s: float

    @property
    def total_s(self) -> float:
        return self.input_s + self.algorithm_s + self.buffers_s + self.output_s


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What a line has done so far.

    Attributes:
        level_in_db, level_out_db: peaks, dBFS.
        load: share of real time that the work takes, lately.
        n_dropouts: times that the loudspeaker found too little.
        lost_s: sound of the microphone that found no place.
        skipped_s: sound that was left out to catch up.
        stretched: samples that were added (negative: taken away) to keep two clocks together.
        latency: None: not yet measured.
        heard_s: sound that came in.
    """

    level_in_db: float
    level_out_db: float
    load: float
    n_dropouts: int
    lost_s: float
    skipped_s: float
    stretched: int
    latency: Latency | None
    heard_s: float


class Line:
    """A line between two devices; `hear` and `say` are their callbacks, `work` a thread's.

    Args:
        stream: enhances; its rate and channels are those of both devices.
        reserve_ms: the least that is to be left for the loudspeaker.
        record: gets what was heard and what became of it, aligned, as many frames of both.

    Attributes:
        enhancing: what is said: the enhanced sound, or as it was, equally late.
    """

    def __init__(self, stream: Stream, reserve_ms: float = 10.0, record: Record | None = None) -> None:
        self._stream, self._record = stream, record
        self._rate_hz, self._channels = stream.sample_rate_hz, stream.channels
        self._least_reserve = self._reserve = reserve_ms * self._rate_hz / 1000
        self._capacity = round(RING_S * self._rate_hz)
        self.enhancing = True
        self._levels = [FLOOR_DB, FLOOR_DB]
        self._load = 0.0
        self._n_before = 0  # dropouts, at the end of the last window
        self._n_dropouts = self._n_lost = self._n_skipped = self._n_stretched = self._n_heard = 0
        self.restart()

    def restart(self) -> None:
        """Begin anew, as after a device was away; what is counted goes on. No callback may run meanwhile."""
        self._stream.reset()
        self._heard, self._said = (Ring(self._capacity, self._channels) for _ in range(2))
        self._came = threading.Event()
        self._stretch = Stretch(self._channels)
        latency = self._stream.latency_samples
        self._dry = FrameQueue()
        self._dry.put(np.zeros((latency, self._channels), np.float32))
        self._to_record, self._early = FrameQueue(), latency
        self._mix = float(self.enhancing)
        self._priming, self._skip = True, 0
        self._least = self._capacity  # the least that was left in this window; as much: the loudspeaker did not ask
        self._window, self._to_stretch = 0, 0.0
        self._heard_at: deque[tuple[int, float, float]] = deque(maxlen=1000)  # of callbacks: first frame, at_s, now_s
        self._said_at: tuple[int, float, float] | None = None
        self._chunk = 0  # most frames that came at once

    # Callbacks

    def hear(self, frames: Samples, at_s: float, now_s: float) -> None:
        """Take frames of the microphone, the first of which was in the air at `at_s` of the devices' clock."""
        self._heard_at.append((self._heard.n_put, at_s, now_s))
        self._chunk = max(self._chunk, len(frames))
        self._n_lost += self._heard.put(frames)
        self._came.set()

    def say(self, out: Samples, at_s: float, now_s: float) -> None:
        """Fill `out` for the loudspeaker, the first frame of which will be in the air at `at_s`."""
        left = self._said.n_frames - len(out)
        if self._priming:
            extra = left - round(self._reserve) - self._chunk
            if extra < 0:
                out[:] = 0
                return
            self._n_skipped += len(self._said.take(extra))  # it came while the other device began
            left -= extra
        self._priming = left < 0
        if left < 0:
            self._n_dropouts += 1
            self._reserve = min(
                self._reserve + MORE_S * self._rate_hz, self._least_reserve + MOST_MORE_S * self._rate_hz
            )
        elif self._skip:
            self._n_skipped += len(self._said.take(min(self._skip, left)))
            self._skip, self._least = 0, left
        else:
            self._least = min(self._least, left)
        self._said_at = self._said.n_taken, at_s, now_s
        taken = self._said.take(len(out))
        out[: len(taken)] = taken
        out[len(taken) :] = 0

    # Work

    def work(self, wait_s: float) -> bool:
        """Enhance what has come; False where nothing came in `wait_s`. Errors: as `edgese.Stream.process`."""
        if not self._heard.n_frames:
            self._came.clear()
            if not self._heard.n_frames and not self._came.wait(wait_s):
                return False
        block = self._heard.take(round(MOST_S * self._rate_hz))
        if not len(block):
            return False
        started = time.perf_counter()
        shaped = block[:, 0] if self._channels == 1 else block
        wet = self._stream.process(shaped).reshape(block.shape)
        self._dry.put(block)
        dry = self._dry.take(len(block))
        chosen = self._faded(dry, wet)
        longer = self._longer(len(block))
        self._n_skipped += self._said.put(self._stretch.push(chosen, longer))
        self._n_heard += len(block)
        took_s, lasts_s = time.perf_counter() - started, len(block) / self._rate_hz
        share = min(1.0, lasts_s)  # of the last second
        self._load += share * (took_s / lasts_s - self._load)
        for index, frames in enumerate((block, chosen)):
            peak_db = 20 * float(np.log10(np.abs(frames).max() + 1e-9))
            self._levels[index] = max(FLOOR_DB, peak_db, self._levels[index] - FALL_DB_S * lasts_s)
        if self._record is not None:
            self._put_on_record(self._record, block, wet)
        return True

    def finish(self) -> None:
        """Give the record the last frames, when nothing comes any more; `restart` must follow."""
        if self._record is None:
            return
        rest = self._stream.flush().reshape(-1, self._channels)
        self._put_on_record(self._record, np.zeros((0, self._channels), np.float32), rest)

    def numbers(self) -> Numbers:
        """What has happened so far."""
        return Numbers(
            level_in_db=self._levels[0],
            level_out_db=self._levels[1],
            load=self._load,
            n_dropouts=self._n_dropouts,
            lost_s=self._n_lost / self._rate_hz,
            skipped_s=self._n_skipped / self._rate_hz,
            stretched=self._n_stretched,
            latency=self._latency(),
            heard_s=self._n_heard / self._rate_hz,
        )

    def _faded(self, dry: Samples, wet: Samples) -> Samples:
        wanted = float(self.enhancing)
        if self._mix == wanted:
            return wet if wanted else dry
        step = 1 / (FADE_S * self._rate_hz)
        ways = np.arange(1, len(wet) + 1) * step
        mix = np.minimum(self._mix + ways, 1) if wanted else np.maximum(self._mix - ways, 0)
        self._mix = float(mix[-1])
        gain = mix.astype(np.float32)[:, None]
        faded: Samples = gain * wet + (1 - gain) * dry
        return faded

    def _longer(self, n_frames: int) -> int:
        """Frames by which this block is to be longer than it came (negative: shorter)."""
        self._window += n_frames
        if self._window >= WINDOW_S * self._rate_hz:
            least, self._least, self._window = self._least, self._capacity, 0
            excess = round(least - self._reserve)
            if self._n_dropouts == self._n_before:
                self._reserve = max(self._least_reserve, self._reserve - LESS_S * self._rate_hz)
            self._n_before = self._n_dropouts
            if least == self._capacity or abs(excess) <= DEADBAND_S * self._rate_hz:
                self._to_stretch = 0.0
            elif excess > SKIP_S * self._rate_hz:
                self._skip, self._to_stretch = excess, 0.0
            else:
                self._to_stretch = -excess / 2  # over the next window
        most = int(n_frames * MOST_STRETCH)
        longer = int(max(-most, min(most, self._to_stretch)))
        self._to_stretch -= longer
        self._n_stretched += longer
        return longer

    def _put_on_record(self, record: Record, block: Samples, wet: Samples) -> None:
        self._to_record.put(block)
        early = min(self._early, len(wet))
        self._early -= early
        wet = wet[early:]
        if len(wet):
            record(self._to_record.take(len(wet)), wet)

    def _latency(self) -> Latency | None:
        said, heard = self._said_at, [*self._heard_at]
        if said is None or self._priming:
            return None
        behind = self._said.n_put - said[0]  # from the frame that was said to the last one that came out
        number = self._heard.n_taken - behind - self._stream.latency_samples - DELAY  # of that frame, when it was heard
        before = [one for one in heard if one[0] <= number]
        if not before:
            return None
        first, at_s, now_s = before[-1]
        total_s = said[1] - at_s - (number - first) / self._rate_hz
        algorithm_s = (self._stream.latency_samples + DELAY) / self._rate_hz
        if total_s < algorithm_s:  # a moment ago the loudspeaker stood still, and frames found no place
            return None
        input_s, output_s = now_s - at_s, said[1] - said[2]
        return Latency(input_s, algorithm_s, total_s - input_s - algorithm_s - output_s, output_s)
