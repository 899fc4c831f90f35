/* The module `Leaky` of test_runtime_contract.py with the interface of edgese.h: a hop is a frame of three channels. */
#include "edgese.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct edgese_weights {
    float mix[3][6], bias[3], decay[3];
};

struct edgese_stream {
    const edgese_weights *weights;
    float past[3], level[3];
};

edgese_weights *edgese_open(const char *path, char *error)
{
    edgese_weights *weights = calloc(1, sizeof *weights);
    FILE *file = fopen(path, "rb");
    if (!file || fread(weights, sizeof *weights, 1, file) != 1) {
        snprintf(error, EDGESE_ERROR_SIZE, "%.200s: cannot be read", path);
        free(weights);
        weights = NULL;
    }
    if (file)
        fclose(file);
    return weights;
}

void edgese_close(edgese_weights *weights)
{
    free(weights);
}

size_t edgese_hop(const edgese_weights *weights)
{
    (void)weights;
    return 3;
}

const char *edgese_metadata(const edgese_weights *weights)
{
    (void)weights;
    return "{}";
}

const char *edgese_instructions(const edgese_weights *weights)
{
    (void)weights;
    return "generic";
}

int edgese_use(edgese_weights *weights, const char *instructions)
{
    (void)weights;
    return strcmp(instructions, "generic") ? -1 : 0;
}

size_t edgese_weights_bytes(const edgese_weights *weights)
{
    return sizeof *weights;
}

edgese_stream *edgese_start(const edgese_weights *weights, size_t block, unsigned options, char *error)
{
    edgese_stream *stream = calloc(1, sizeof *stream);
    (void)block, (void)options, (void)error;
    stream->weights = weights;
    return stream;
}

void edgese_stop(edgese_stream *stream)
{
    free(stream);
}

size_t edgese_stream_bytes(const edgese_stream *stream)
{
    return sizeof *stream;
}

size_t edgese_process(edgese_stream *s, const float *in, float *out, size_t n_hops)
{
    for (; n_hops--; in += 3, out += 3) {
        for (int i = 0; i < 3; i++) {
            float sum = s->weights->bias[i];
            for (int j = 0; j < 3; j++)
                sum += s->weights->mix[i][j] * in[j] + s->weights->mix[i][3 + j] * s->past[j];
            s->level[i] = s->weights->decay[i] * s->level[i] + tanhf(sum);
        }
        memcpy(s->past, in, sizeof s->past);
        memcpy(out, s->level, sizeof s->level);
    }
    return 0;
}

void edgese_reset(edgese_stream *stream)
{
    memset(stream->past, 0, sizeof stream->past);
    memset(stream->level, 0, sizeof stream->level);
}

const char *edgese_state_name(const edgese_weights *weights, size_t index)
{
    (void)weights;
    return index == 0 ? "past" : index == 1 ? "level" : NULL;
}

size_t edgese_state_size(const edgese_weights *weights, const char *name, size_t *dims)
{
    (void)weights, (void)name, (void)dims;
    return 3;
}

int edgese_get_state(const edgese_stream *stream, const char *name, float *values, size_t n)
{
    memcpy(values, strcmp(name, "past") ? stream->level : stream->past, n * sizeof *values);
    return 0;
}

int edgese_set_state(edgese_stream *stream, const char *name, const float *values, size_t n)
{
    memcpy(strcmp(name, "past") ? stream->level : stream->past, values, n * sizeof *values);
    return 0;
}
