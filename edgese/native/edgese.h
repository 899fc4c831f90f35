/* edgese: speech enhancement by MBS-Net, in C11 and libm.
 *
 *     char error[EDGESE_ERROR_SIZE];
 *     edgese_weights *weights = edgese_open("mbs-net-small.edgese", error);
 *     edgese_stream *stream = edgese_start(weights, 1, 0, error);
 *     while (read_hop(in))                              (128 samples, 16 kHz, mono, -1 to 1)
 *         edgese_process(stream, in, out, 1);           (the same number of samples, 384 behind)
 *     edgese_stop(stream);
 *     edgese_close(weights);
 *
 * Weights are read only: any number of streams share them, each in a thread of its own. One stream is for one thread
 * at a time. Memory is taken by `open` and `start` only: what is called afterwards allocates nothing, locks nothing,
 * makes no system call and has no global variable.
 */
#ifndef EDGESE_H
#define EDGESE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGESE_ERROR_SIZE 256 /* bytes of an error's text, its end included */
#define EDGESE_MAX_DIMS 3     /* axes of a state */
#define EDGESE_MAX_BLOCK 64   /* hops that a stream can take at a time */

typedef struct edgese_weights edgese_weights;
typedef struct edgese_stream edgese_stream;

/* Options of a stream, to be added. */
enum {
    EDGESE_PCS = 1, /* perceptual contrast stretching after the network */
    EDGESE_PASS = 2 /* take NaN and infinity as they are, as PyTorch does: the stream holds NaN until it is reset */
};

/* The weights in a file, or in memory, which is not needed afterwards. NULL where they cannot be opened: `error` (of
 * EDGESE_ERROR_SIZE bytes, or NULL) then holds one line that says what was found and what was wanted. */
edgese_weights *edgese_open(const char *path, char *error);
edgese_weights *edgese_open_memory(const void *data, size_t n_bytes, char *error);

/* Frees the weights, which their streams must not run without. NULL is let pass. */
void edgese_close(edgese_weights *weights);

/* What a sound must be, and what becomes of it: samples a second, samples in a hop, samples that the output runs
 * behind the input, and algorithmic latency in samples (the delay and the hop that must first be there). */
size_t edgese_sample_rate(const edgese_weights *weights);
size_t edgese_hop(const edgese_weights *weights);
size_t edgese_delay(const edgese_weights *weights);
size_t edgese_latency(const edgese_weights *weights);

/* Metadata of the file, a JSON object; bytes that the weights take in memory. */
const char *edgese_metadata(const edgese_weights *weights);
size_t edgese_weights_bytes(const edgese_weights *weights);

/* Instruction set that is used, the best of this machine: "avx512", "avx2", "sse2", "neon", "wasm" or "generic".
 * `edgese_use` chooses another before any stream is started; 0, or -1 where this machine or build does not have it. */
const char *edgese_instructions(const edgese_weights *weights);
int edgese_use(edgese_weights *weights, const char *instructions);

/* A stream at its start; NULL as above.
 *
 * block: hops that are worked on at a time, 1 to EDGESE_MAX_BLOCK: 1 for live sound; 8 for files, where the weights
 *     are read once for 8 hops. The result is the same for any. Memory grows with it.
 * options: 0, or EDGESE_PCS, EDGESE_PASS or both. */
edgese_stream *edgese_start(const edgese_weights *weights, size_t block, unsigned options, char *error);

/* Frees a stream. NULL is let pass. */
void edgese_stop(edgese_stream *stream);

/* Enhances n_hops * edgese_hop samples from `in` to `out`, which may be the same memory, at any address.
 *
 * Returns the number of input samples that were no sound: NaN is taken for 0, what lies beyond +-1e6 (120 dB over full
 * scale) for that, unless EDGESE_PASS is set. 0 where all is well. */
size_t edgese_process(edgese_stream *stream, const float *in, float *out, size_t n_hops);

/* Starts anew: all states zero. */
void edgese_reset(edgese_stream *stream);

/* Bytes that a stream takes in memory, its states and its work space. */
size_t edgese_stream_bytes(const edgese_stream *stream);

/* All that a stream remembers, by the names that the exported graphs have: analysis, synthesis, conv_0, ssm_0, ...
 *
 * edgese_state_name: NULL from the number of states on.
 * edgese_state_size: number of floats, 0 for an unknown name; dims (EDGESE_MAX_DIMS of them, or NULL) gets the axes,
 *     0 where there is none. An ssm is (bands, states, channels), channels innermost.
 * edgese_get_state, edgese_set_state: copy n floats; 0, or -1 where the name is unknown or n is not its size. */
const char *edgese_state_name(const edgese_weights *weights, size_t index);
size_t edgese_state_size(const edgese_weights *weights, const char *name, size_t *dims);
int edgese_get_state(const edgese_stream *stream, const char *name, float *values, size_t n);
int edgese_set_state(edgese_stream *stream, const char *name, const float *values, size_t n);

#ifdef __cplusplus
}
#endif
#endif
