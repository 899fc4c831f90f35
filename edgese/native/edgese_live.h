/* edgese_live: live sound of any rate, in calls of any length, whole band.
 *
 *     edgese_live *live = edgese_live_start(weights, 48000, 2, 0, error);
 *     edgese_live_process(live, in, out, n, EDGESE_NO_LIMIT, 1);     (n samples of each channel)
 *     edgese_live_stop(live);
 *
 * The network hears what lies below 8 kHz, resampled; what lies above keeps its place and is made quieter as the network
 * makes its own upper band (4 to 7.3 kHz) quieter, and where it does not stand out of the noise there; never louder.
 * Where the network changes nothing, the output is the input. What comes out does not depend on how sound is cut into
 * calls, to the bit. It is what `edgese.Stream` gives in Python, except that quiet sound is not lifted.
 *
 * As with edgese.h: `process` allocates nothing, locks nothing and makes no system call; one thread at a time.
 */
#ifndef EDGESE_LIVE_H
#define EDGESE_LIVE_H

#include "edgese.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EDGESE_NO_LIMIT 100.0f /* dB from which on an attenuation limit is none */

typedef struct edgese_live edgese_live;

/* Sound at its start; NULL as in edgese.h. The weights must outlive it.
 *
 * rate_hz: the network's rate or more; one whose common factor with it is so small that tables would take more than
 *     16 MB is refused (all rates of sound cards are far from it).
 * channels: each is a stream of its own.
 * options: those of edgese_start. */
edgese_live *edgese_live_start(const edgese_weights *weights, unsigned rate_hz, unsigned channels, unsigned options,
                               char *error);

/* Frees it. NULL is let pass. */
void edgese_live_stop(edgese_live *live);

/* Starts anew: no sound yet. */
void edgese_live_reset(edgese_live *live);

/* Samples that the output runs behind the input, exactly. */
size_t edgese_live_latency(const edgese_live *live);

/* Enhances n samples of each channel, `in` to `out`, which may be the same memory.
 *
 * atten_limit_db: nothing is attenuated by more; 0 gives the input, delayed; from EDGESE_NO_LIMIT on none.
 * mix: share of the enhanced sound, 0 to 1; the rest is the input, delayed. Either changes without a click.
 * Returns the number of input samples that were no sound: NaN is taken for 0, what lies beyond +-1e6 for that. */
size_t edgese_live_process(edgese_live *live, const float *const *in, float *const *out, size_t n,
                           float atten_limit_db, float mix);

#ifdef __cplusplus
}
#endif
#endif
