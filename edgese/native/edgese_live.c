/* edgese_live.h says what this does.
 *
 * Time is counted on a grid that host and network share: a host sample lies on every `L`th point, a sample of the
 * network on every `M`th (48 kHz: 1 and 3; 44.1 kHz: 160 and 441). One windowed sinc on that grid takes the input x down
 * to y, and what the network makes of it up again. With the network's answer e, the upper band's gain g, and the
 * share c that attenuation limit and mix leave to the enhanced sound:
 *
 *     out = c * (up(e) + g * (x - up(y))) + (1 - c) * x = c * (up(e - g * y) + g * x) + (1 - c) * x
 *
 * so that one interpolation is enough, and e = y with g = 1 gives x again, aliases of the resampling included.
 */
#include "edgese_live.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PI 3.14159265358979323846

/* The sinc: full below 7 kHz, 80 dB down from 8 kHz on, 2.5 ms to either side (at a network's rate of 16 kHz). */
#define EDGE (15.0 / 32)  /* half way down, of the network's rate */
#define HALF_LENGTH 40    /* samples of the network */
#define KAISER 7.857      /* 0.1102 (80 - 8.7) */
#define MOST_FLOATS (4 << 20) /* of the two tables */

/* The upper band that the gain follows: from 9/32 of the network's rate on (4.5 kHz). */
#define UPPER_TAPS 31
#define UPPER_EDGE (9.0 / 32)
#define FOLLOW 0.4f         /* weight of the newest hop in the smoothed energies: 16 ms */
#define LEAST_ENERGY 1e-12f /* of a sample: -120 dB */
#define GLIDE_SECONDS 0.02  /* in which a changed control takes effect */

/* The last samples of a signal, each written twice, so that any stretch of them lies in one piece. */
typedef struct {
    float *at;
    size_t size; /* a power of two */
} ring;

typedef struct {
    edgese_stream *stream;
    ring x, y, e, w;         /* input; network's input, its answer; e - g y */
    float *hop;              /* the network's next input */
    float energy_y, energy_e; /* of the upper bands, smoothed */
    float last;              /* gain at the end of the last hop */
    ring gain;               /* of each sample of the network */
} channel;

struct edgese_live {
    size_t hop, delay, latency, L, M;
    size_t half_down, half_up; /* taps to either side, in samples of host and network */
    float *down, *up;          /* [L][2 half_down + 1], [M][2 half_up + 1] */
    float upper[UPPER_TAPS];
    uint64_t n, m;             /* next sample of host and network; both start at the same point of the grid */
    size_t down_phase, up_phase;
    uint64_t down_at, up_at;   /* host sample at or before the network's m; network's sample at or before the output */
    size_t gathered, channels;
    float share, glide;
    int started;
    channel *of;
};

static size_t common_factor(size_t a, size_t b)
{
    return b ? common_factor(b, a % b) : a;
}

/* Modified Bessel function of order zero, for the Kaiser window. */
static double bessel(double x)
{
    double sum = 1, term = 1;
    for (int i = 1; i < 64; i++) {
        term *= x / (2 * i) * (x / (2 * i));
        sum += term;
    }
    return sum;
}

/* The sinc at a place on the grid: half way down at `edge` cycles a point, nothing from `reach` points on. */
static double windowed_sinc(double place, double reach, double edge)
{
    double beside = 1 - place / reach * (place / reach), angle = 2 * PI * edge * place;
    return beside < 0 ? 0 : (angle == 0 ? 1 : sin(angle) / angle) * bessel(KAISER * sqrt(beside));
}

/* Coefficients of each of `step` phases, in the order of the samples that they meet, which lie `step` points apart:
 * 1 in all, in the mean of the phases. */
static void fill(float *table, size_t step, size_t half, double reach, double edge)
{
    const size_t taps = 2 * half + 1;
    double total = 0;
    for (size_t i = 0; i < step * taps; i++) {
        double place = (double)(i / taps) - ((double)(i % taps) - (double)half) * (double)step;
        double value = windowed_sinc(place, reach, edge);
        table[i] = (float)value;
        total += value / (double)step;
    }
    for (size_t i = 0; i < step * taps; i++)
        table[i] = (float)(table[i] / total);
}

static int make(ring *r, size_t least)
{
    for (r->size = 1; r->size < least; r->size *= 2)
        ;
    r->at = calloc(2 * r->size, sizeof *r->at);
    return r->at != NULL;
}

static void put(ring *r, uint64_t place, float value)
{
    size_t i = (size_t)place & (r->size - 1);
    r->at[i] = r->at[i + r->size] = value;
}

/* Sample `place`, and those after it. */
static const float *get(const ring *r, uint64_t place)
{
    return r->at + ((size_t)place & (r->size - 1));
}

static float dot(const float *a, const float *b, size_t n)
{
    float sums[8] = {0}, total = 0;
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++)
            sums[j] += a[i + j] * b[i + j];
    for (; i < n; i++)
        total += a[i] * b[i];
    for (size_t j = 0; j < 8; j++)
        total += sums[j];
    return total;
}

static edgese_live *refuse(edgese_live *live, char *error, const char *why)
{
    if (error && why)
        snprintf(error, EDGESE_ERROR_SIZE, "%s", why);
    edgese_live_stop(live);
    return NULL;
}

edgese_live *edgese_live_start(const edgese_weights *weights, unsigned rate_hz, unsigned channels, unsigned options,
                               char *error)
{
    const size_t rate = edgese_sample_rate(weights), factor = common_factor(rate, rate_hz);
    const size_t hop = edgese_hop(weights);
    edgese_live *live = calloc(1, sizeof *live);
    double reach, total = 0;
    if (error)
        error[0] = 0;
    if (!live)
        return refuse(live, error, "no memory");
    if (rate_hz < rate || channels < 1) {
        if (error)
            snprintf(error, EDGESE_ERROR_SIZE, "found %u Hz and %u channels, wanted %u Hz or more and a channel",
                     rate_hz, channels, (unsigned)rate);
        return refuse(live, error, NULL);
    }
    live->L = rate / factor, live->M = rate_hz / factor;
    live->hop = hop, live->delay = edgese_delay(weights);
    reach = rate_hz == rate ? 0.5 : (double)(HALF_LENGTH * live->M);
    live->half_down = rate_hz == rate ? 0 : (HALF_LENGTH * live->M + live->L - 1) / live->L;
    live->half_up = rate_hz == rate ? 0 : HALF_LENGTH;
    live->latency = live->half_down + (live->half_up + live->delay + hop - 1) * live->M / live->L;
    if (live->L * (2 * live->half_down + 1) + live->M * (2 * live->half_up + 1) > MOST_FLOATS) {
        if (error)
            snprintf(error, EDGESE_ERROR_SIZE, "found %u Hz, wanted a rate with a larger common factor with %u",
                     rate_hz, (unsigned)rate);
        return refuse(live, error, NULL);
    }
    live->down = calloc(live->L * (2 * live->half_down + 1), sizeof *live->down);
    live->up = calloc(live->M * (2 * live->half_up + 1), sizeof *live->up);
    live->of = calloc(channels, sizeof *live->of);
    if (!live->down || !live->up || !live->of)
        return refuse(live, error, "no memory");
    fill(live->down, live->L, live->half_down, reach, EDGE / (double)live->M);
    fill(live->up, live->M, live->half_up, reach, EDGE / (double)live->M);
    for (int i = 0; i < UPPER_TAPS; i++) {
        const double place = i - UPPER_TAPS / 2, half = UPPER_TAPS / 2 + 1;
        total += live->upper[i] = (float)((place == 0 ? 1 : sin(2 * PI * UPPER_EDGE * place) / (2 * PI * UPPER_EDGE * place)) *
                                          (1 + cos(PI * place / half)) / 2);
    }
    for (int i = 0; i < UPPER_TAPS; i++)
        live->upper[i] = (float)((i == UPPER_TAPS / 2) - live->upper[i] / total);
    for (live->channels = 0; live->channels < channels;) {
        channel *c = &live->of[live->channels++];
        const size_t kept = live->delay + 2 * hop + 2 * live->half_up + UPPER_TAPS + 2;
        if (!(c->stream = edgese_start(weights, 1, options, error)))
            return refuse(live, error, NULL);
        c->hop = calloc(2 * hop, sizeof *c->hop);
        if (!c->hop || !make(&c->x, live->latency + 2 * live->half_down + 2) || !make(&c->y, kept) ||
            !make(&c->e, kept) || !make(&c->w, kept) || !make(&c->gain, kept))
            return refuse(live, error, "no memory");
    }
    live->glide = (float)(1 - exp(-1 / (GLIDE_SECONDS * rate_hz)));
    edgese_live_reset(live);
    return live;
}

void edgese_live_stop(edgese_live *live)
{
    if (!live)
        return;
    for (size_t i = 0; live->of && i < live->channels; i++) {
        channel *c = &live->of[i];
        edgese_stop(c->stream);
        free(c->x.at), free(c->y.at), free(c->e.at), free(c->w.at), free(c->gain.at), free(c->hop);
    }
    free(live->down), free(live->up), free(live->of), free(live);
}

static void clear(ring *r, float value)
{
    for (size_t i = 0; i < 2 * r->size; i++)
        r->at[i] = value;
}

void edgese_live_reset(edgese_live *live)
{
    /* so far from zero that nothing that is asked for lies before it */
    const uint64_t turns = (live->latency + 2 * live->half_down) / live->M + live->delay + live->hop + HALF_LENGTH;
    const uint64_t before = (live->half_up + live->L - 1) / live->L; /* the filter hears the first sample before it comes */
    live->n = turns * live->M;
    live->m = (turns - before) * live->L;
    live->down_at = (turns - before) * live->M, live->down_phase = 0;
    live->up_at = (live->n - live->latency) * live->L / live->M;
    live->up_phase = (size_t)((live->n - live->latency) * live->L % live->M);
    live->gathered = 0;
    live->started = 0;
    for (size_t i = 0; i < live->channels; i++) {
        channel *c = &live->of[i];
        edgese_reset(c->stream);
        clear(&c->x, 0), clear(&c->y, 0), clear(&c->e, 0), clear(&c->w, 0), clear(&c->gain, 1);
        c->energy_y = c->energy_e = 0;
        c->last = 1;
    }
}

size_t edgese_live_latency(const edgese_live *live)
{
    return live->latency;
}

/* A hop through the network; its answer belongs to the samples from `place` on. */
static void answer(edgese_live *live, channel *c, uint64_t place)
{
    const float *e = c->hop + live->hop;
    float of_y = 0, of_e = 0, gain, step;
    edgese_process(c->stream, c->hop, c->hop + live->hop, 1);
    for (size_t i = 0; i < live->hop; i++) {
        float y, z;
        put(&c->e, place + i, e[i]);
        y = dot(live->upper, get(&c->y, place + i + 1 - UPPER_TAPS), UPPER_TAPS);
        z = dot(live->upper, get(&c->e, place + i + 1 - UPPER_TAPS), UPPER_TAPS);
        of_y += y * y, of_e += z * z;
    }
    c->energy_y += FOLLOW * (of_y + LEAST_ENERGY * (float)live->hop - c->energy_y);
    c->energy_e += FOLLOW * (of_e + LEAST_ENERGY * (float)live->hop - c->energy_e);
    gain = c->energy_e < c->energy_y ? sqrtf(c->energy_e / c->energy_y) : 1;
    step = (gain - c->last) / (float)live->hop;
    for (size_t i = 0; i < live->hop; i++) {
        float now = c->last + step * (float)(i + 1);
        put(&c->gain, place + i, now);
        put(&c->w, place + i, e[i] - now * *get(&c->y, place + i));
    }
    c->last = gain;
}

/* The network's next sample, of all channels, and a hop where that makes one. */
static void take_down(edgese_live *live)
{
    const size_t taps = 2 * live->half_down + 1;
    for (size_t i = 0; i < live->channels; i++) {
        channel *c = &live->of[i];
        const float *x = get(&c->x, live->down_at - live->half_down);
        float y = dot(live->down + live->down_phase * taps, x, taps);
        put(&c->y, live->m, y);
        c->hop[live->gathered] = y;
    }
    live->m++;
    live->down_phase += live->M;
    live->down_at += live->down_phase / live->L;
    live->down_phase %= live->L;
    if (++live->gathered == live->hop) {
        live->gathered = 0;
        for (size_t i = 0; i < live->channels; i++)
            answer(live, &live->of[i], live->m - live->hop - live->delay);
    }
}

size_t edgese_live_process(edgese_live *live, const float *const *in, float *const *out, size_t n,
                           float atten_limit_db, float mix)
{
    const size_t taps = 2 * live->half_up + 1;
    const float limit = atten_limit_db >= EDGESE_NO_LIMIT || atten_limit_db != atten_limit_db ? 0
                        : powf(10, -(atten_limit_db > 0 ? atten_limit_db : 0) / 20);
    const float share = (mix >= 0 ? mix < 1 ? mix : 1 : mix < 0 ? 0 : 1) * (1 - limit);
    size_t no_sound = 0;
    if (!live->started)
        live->share = share;
    live->started = 1;
    for (size_t at = 0; at < n; at++) {
        for (size_t i = 0; i < live->channels; i++) {
            float x = in[i][at];
            if (!(x <= 1e6f && x >= -1e6f)) {
                x = x > 1e6f ? 1e6f : x < -1e6f ? -1e6f : 0;
                no_sound++;
            }
            put(&live->of[i].x, live->n, x);
        }
        while (live->down_at + live->half_down <= live->n)
            take_down(live);
        if (live->share != share) {
            live->share += live->glide * (share - live->share);
            if (fabsf(live->share - share) < 1e-5f)
                live->share = share;
        }
        for (size_t i = 0; i < live->channels; i++) {
            const channel *c = &live->of[i];
            const float *gain = get(&c->gain, live->up_at), x = *get(&c->x, live->n - live->latency);
            const float between = (float)live->up_phase / (float)live->M;
            const float g = gain[0] + between * (gain[1] - gain[0]);
            const float z = dot(live->up + live->up_phase * taps, get(&c->w, live->up_at - live->half_up), taps);
            out[i][at] = live->share * (z + g * x) + (1 - live->share) * x;
        }
        live->n++;
        live->up_phase += live->L;
        live->up_at += live->up_phase / live->M;
        live->up_phase %= live->M;
    }
    return no_sound;
}
