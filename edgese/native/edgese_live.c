/* edgese_live.h says what this does. It is what edgese/live/ and edgese/enhance/whole_band.py do, in one pass.
 *
 * Time is counted on a grid that host and network share: a host sample lies on every `L`th point, a sample of the
 * network on every `M`th (48 kHz: 1 and 3; 44.1 kHz: 160 and 441). One windowed sinc on that grid takes the input x down
 * to y, and y and the network's answer e up again. With the gain g of what lies above, and the share c that attenuation
 * limit and mix leave to the enhanced sound:
 *
 *     out = c * (up(e) + g * (x - up(y))) + (1 - c) * x
 *
 * so that e = y with g = 1 gives x again, aliases of the resampling included.
 */
#include "edgese_live.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PI 3.14159265358979323846

/* The sinc, as in edgese/audio/resampler.py: within 0.001 dB up to 0.91 of the network's band, 93 dB down from 1.02 on. */
#define CROSSINGS 56 /* samples of the network to either side: 3.5 ms */
#define EDGE 0.481   /* half way down, of the network's rate */
#define KAISER 9.29
#define MOST_FLOATS (4 << 20) /* of the two tables */

/* The gain of what lies above, as in edgese/enhance/whole_band.py, which says why. */
#define BAND_BEGIN 0.25 /* of the network's rate: the band by which the gain goes */
#define BAND_END 0.455
#define WINDOW_SECONDS 0.016
#define CLOSED 0.3f /* gain below which what is heard above is noise */
#define PIECE_SECONDS 0.002
#define PIECES 8
#define NOISE_SECONDS 0.15
#define FALL_SECONDS 0.03
#define FLOOR 1e-8f

#define GLIDE_SECONDS 0.02 /* in which a changed control takes effect */

/* The last samples of a signal, each written twice, so that any stretch of them lies in one piece. */
typedef struct {
    float *at;
    size_t size; /* a power of two */
} ring;

/* What stands out of the noise above the network's band. */
typedef struct {
    float powers[PIECES], noise, before, last; /* the last two: gains after the last piece but one, after the last */
    double power, gain;                        /* sums over the piece that is being heard */
    size_t heard;
    int known;
} outstanding;

typedef struct {
    edgese_stream *stream;
    ring x, y, e; /* input; network's input, its answer */
    ring gain;    /* by the network's upper band, of each of its samples */
    float last;   /* gain at the end of the last hop */
    float *hop;   /* the network's next input, and its answer */
    outstanding above;
} channel;

struct edgese_live {
    size_t hop, delay, latency, L, M;
    size_t half_down, half_up; /* taps to either side, in samples of host and network */
    float *down, *up;          /* [L][2 half_down + 1], [M][2 half_up + 1] */
    size_t window, bins, piece;
    float *waves;                     /* [bins][cosine, sine][window], windowed */
    float fall, piece_fall, learning; /* the last: share of a piece in what is known of the noise */
    uint64_t origin_n, origin_m;      /* first samples of host and network, at one point of the grid */
    uint64_t n, m;                    /* next ones */
    uint64_t down_at, up_at;          /* host sample at or before m; network's sample at or before the output */
    size_t down_phase, up_phase;
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
 * 1 in all. */
static void fill(float *table, size_t step, size_t half, double edge)
{
    const size_t taps = 2 * half + 1;
    for (size_t phase = 0; phase < step; phase++, table += taps) {
        double total = 0;
        for (size_t i = 0; i < taps; i++) {
            double place = (double)phase - ((double)i - (double)half) * (double)step;
            double value = half ? windowed_sinc(place, (double)(half * step), edge) : 1;
            table[i] = (float)value;
            total += value;
        }
        for (size_t i = 0; i < taps; i++)
            table[i] = (float)(table[i] / total);
    }
}

/* Waves of the bins of a Hann window, whose products with a signal are its spectrum there. */
static void fill_waves(float *table, size_t window, size_t begin, size_t bins)
{
    for (size_t bin = begin; bin < begin + bins; bin++)
        for (int part = 0; part < 2; part++)
            for (size_t i = 0; i < window; i++) {
                double angle = 2 * PI * (double)(bin * i % window) / (double)window;
                double hann = 0.5 - 0.5 * cos(2 * PI * (double)i / (double)window);
                *table++ = (float)(hann * (part ? sin(angle) : cos(angle)));
            }
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
    size_t begin;
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
    live->half_down = rate_hz == rate ? 0 : (CROSSINGS * live->M + live->L - 1) / live->L;
    live->half_up = rate_hz == rate ? 0 : CROSSINGS;
    live->latency = live->half_down + (live->half_up + live->delay + hop - 1) * live->M / live->L;
    live->window = (size_t)(WINDOW_SECONDS * (double)rate + 0.5);
    begin = (size_t)ceil(BAND_BEGIN * (double)live->window);
    live->bins = (size_t)ceil(BAND_END * (double)live->window) - begin;
    live->piece = (size_t)(PIECE_SECONDS * rate_hz + 0.5);
    if (live->L * (2 * live->half_down + 1) + live->M * (2 * live->half_up + 1) > MOST_FLOATS) {
        if (error)
            snprintf(error, EDGESE_ERROR_SIZE, "found %u Hz, wanted a rate with a larger common factor with %u",
                     rate_hz, (unsigned)rate);
        return refuse(live, error, NULL);
    }
    live->down = calloc(live->L * (2 * live->half_down + 1), sizeof *live->down);
    live->up = calloc(live->M * (2 * live->half_up + 1), sizeof *live->up);
    live->waves = calloc(2 * live->bins * live->window, sizeof *live->waves);
    live->of = calloc(channels, sizeof *live->of);
    if (!live->down || !live->up || !live->waves || !live->of)
        return refuse(live, error, "no memory");
    fill(live->down, live->L, live->half_down, EDGE / (double)live->M);
    fill(live->up, live->M, live->half_up, EDGE / (double)live->M);
    fill_waves(live->waves, live->window, begin, live->bins);
    live->fall = (float)exp(-(double)hop / (double)rate / FALL_SECONDS);
    live->piece_fall = (float)exp(-PIECE_SECONDS / FALL_SECONDS);
    live->learning = (float)(PIECE_SECONDS / NOISE_SECONDS);
    for (live->channels = 0; live->channels < channels;) {
        channel *c = &live->of[live->channels++];
        const size_t kept = live->delay + 2 * hop + 2 * live->half_up + live->window + 2;
        if (!(c->stream = edgese_start(weights, 1, options, error)))
            return refuse(live, error, NULL);
        c->hop = calloc(2 * hop, sizeof *c->hop);
        if (!c->hop || !make(&c->x, live->latency + 2 * live->half_down + 2) || !make(&c->y, kept) ||
            !make(&c->e, kept) || !make(&c->gain, kept))
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
        free(c->x.at), free(c->y.at), free(c->e.at), free(c->gain.at), free(c->hop);
    }
    free(live->down), free(live->up), free(live->waves), free(live->of), free(live);
}

static void clear(ring *r, float value)
{
    for (size_t i = 0; i < 2 * r->size; i++)
        r->at[i] = value;
}

void edgese_live_reset(edgese_live *live)
{
    /* so far from zero that nothing that is asked for lies before it */
    const uint64_t turns = (live->latency + 2 * live->half_down) / live->M + live->delay + live->hop + live->window;
    live->origin_n = live->n = turns * live->M;
    live->origin_m = live->m = turns * live->L;
    live->down_at = live->n, live->down_phase = 0;
    live->up_at = (live->n - live->latency) * live->L / live->M;
    live->up_phase = (size_t)((live->n - live->latency) * live->L % live->M);
    live->gathered = 0;
    live->started = 0;
    for (size_t i = 0; i < live->channels; i++) {
        channel *c = &live->of[i];
        edgese_reset(c->stream);
        clear(&c->x, 0), clear(&c->y, 0), clear(&c->e, 0), clear(&c->gain, 1);
        memset(&c->above, 0, sizeof c->above);
        c->above.before = c->above.last = 1;
    }
}

size_t edgese_live_latency(const edgese_live *live)
{
    return live->latency;
}

/* Mean energy of the upper band of the window that ends before a place. */
static float energy(const edgese_live *live, const ring *sound, uint64_t place)
{
    const float *x = get(sound, place - live->window);
    float total = 0;
    for (size_t i = 0; i < 2 * live->bins; i++) {
        float part = dot(live->waves + i * live->window, x, live->window);
        total += part * part;
    }
    return total / (float)live->bins + FLOOR;
}

/* A hop through the network; its answer belongs to the samples from `place` on. */
static void answer(edgese_live *live, channel *c, uint64_t place)
{
    const float *e = c->hop + live->hop;
    float came_out, went_in, gain;
    edgese_process(c->stream, c->hop, c->hop + live->hop, 1);
    if (place < live->origin_m)
        return;
    for (size_t i = 0; i < live->hop; i++)
        put(&c->e, place + i, e[i]);
    came_out = energy(live, &c->e, place + live->hop);
    went_in = energy(live, &c->y, place + live->hop);
    gain = came_out < went_in ? sqrtf(came_out / went_in) : 1;
    if (place == live->origin_m)
        c->last = gain;
    if (gain < c->last * live->fall)
        gain = c->last * live->fall;
    for (size_t i = 0; i < live->hop; i++) /* at the beginnings of samples */
        put(&c->gain, place + i, c->last + (gain - c->last) * (float)i / (float)live->hop);
    put(&c->gain, place + live->hop, gain);
    c->last = gain;
}

/* Gain of a sample above the network's band, whose gain there would be g. */
static float standing_out(const edgese_live *live, outstanding *o, float above, float g)
{
    const float between = (float)o->heard / (float)live->piece, gain = o->before + between * (o->last - o->before);
    o->power += (double)above * above;
    o->gain += g;
    if (++o->heard == live->piece) {
        const float mean_gain = (float)(o->gain / (double)live->piece);
        float mean = 0, now;
        memmove(o->powers, o->powers + 1, (PIECES - 1) * sizeof *o->powers);
        o->powers[PIECES - 1] = (float)(o->power / (double)live->piece);
        for (int i = 0; i < PIECES; i++)
            mean += o->powers[i] / PIECES;
        mean += 1e-20f;
        if (mean_gain < CLOSED || mean < o->noise)
            o->noise += (mean - o->noise) * (o->known ? live->learning : 1);
        o->known |= mean_gain < CLOSED;
        now = o->noise < mean ? sqrtf(1 - o->noise / mean) : 0;
        o->before = o->last;
        o->last = now > o->last * live->piece_fall ? now : o->last * live->piece_fall;
        o->power = o->gain = 0;
        o->heard = 0;
    }
    return gain < g ? gain : g;
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
            channel *c = &live->of[i];
            const float *gain = get(&c->gain, live->up_at), x = *get(&c->x, live->n - live->latency);
            const float between = (float)live->up_phase / (float)live->M, *taps_now = live->up + live->up_phase * taps;
            float e, above, g;
            if (live->n < live->origin_n + live->latency) { /* no sound has come through yet */
                out[i][at] = 0;
                continue;
            }
            e = dot(taps_now, get(&c->e, live->up_at - live->half_up), taps);
            above = x - dot(taps_now, get(&c->y, live->up_at - live->half_up), taps);
            g = standing_out(live, &c->above, above, gain[0] + between * (gain[1] - gain[0]));
            out[i][at] = live->share * (e + g * above) + (1 - live->share) * x;
        }
        live->n++;
        live->up_phase += live->L;
        live->up_at += live->up_phase / live->M;
        live->up_phase %= live->M;
    }
    return no_sound;
}
