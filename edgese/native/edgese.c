/* edgese.h says what this does. The network is that of edgese/model/mbs_net.py, term by term.
 *
 * The file has two parts. The second holds all arithmetic, written once with the vectors that GCC and Clang have for
 * any machine; the file includes itself to compile that part for each instruction set (with `#pragma ... target`, so
 * that no flag is needed and one object holds them all), and `edgese_open` chooses the best one that runs here.
 *
 * Letters: T hops, F bins, K bands, D channels, E inner channels, N states, H heads, M rows of decay rates (1 or N).
 * Rows of channels are padded to a multiple of PANEL floats; what lies in the padding is never part of a result.
 */
#ifndef EDGESE_PART_2

#include "edgese.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__GNUC__)
#error "edgese.c needs the vector extensions of GCC or Clang (or a compiler built on them: icx, emcc, zig cc)"
#endif
#if defined(__FAST_MATH__)
#error "edgese.c must not be compiled with -ffast-math: NaN would pass unseen, and exp would be wrong"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "edgese.c needs a little-endian machine"
#endif

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#endif

#define PANEL 16         /* columns of a product's weights that lie together */
#define PANELS_SPREAD 4 /* panels of half-size weights that are made float32 at a time */

enum { FLOAT32, FLOAT16, INT8 };
enum { MASK, PHASE, N_DECODERS };

static size_t padded(size_t n)
{
    return (n + PANEL - 1) / PANEL * PANEL;
}

/* A product's weights, (k, n): panels of PANEL columns, in a panel the rows one after another. */
typedef struct {
    const void *data;
    const float *scale; /* of each column, INT8 only */
    const float *bias;  /* of each column, or NULL */
    size_t k, n;        /* n is padded */
    int kind;
} product;

typedef struct {
    const float *norm_weight, *norm_bias, *conv_weight, *conv_bias, *dt_bias, *rates, *skip;
    product in, x, dt, out;
} block;

typedef struct {
    const float *norm_weight, *norm_bias, *bands, *bias;
    product channels;
} fusion;

typedef struct {
    char name[16];
    size_t dims[EDGESE_MAX_DIMS];
    size_t rows, row; /* rows of so many floats, each padded in memory */
    size_t place;     /* in a stream's floats */
} state;

struct edgese_weights {
    size_t n_bytes;
    size_t (*run)(edgese_stream *, const float *, float *, size_t);
    const char *instructions, *metadata;
    size_t rate, n_fft, hop, overlap, bins, bands, channels, inner, states, heads, rank, decay_rows, taps, layers;
    size_t fusions, hidden, widest, d, e, x_pitch, bins_pitch; /* d, e, ..pitch: padded */
    size_t most_rows;                                          /* k of the largest product */
    float compression;
    const size_t *starts; /* (K + 1) first bin of each band */
    const float *ones;    /* (d) 1 for each channel, 0 in the padding */
    product *split;       /* K of them */
    block *blocks;
    fusion *mixes;
    const float *norm_weight, *norm_bias;
    product heads_of[N_DECODERS];
    product *first[N_DECODERS], *last[N_DECODERS]; /* K of each */
    const float *pcs, *pcs_constants;              /* exponent of each bin; scale, floor, gain */
    /* Transform of n_fft real points: one of half as many complex ones, taken as `rows` rows of `columns`. */
    size_t rows, columns;
    const float *window, *synthesis;      /* (n_fft) */
    const float *twiddle_re, *twiddle_im; /* (rows, columns), between the two halves of the complex transform */
    const float *root_re, *root_im;       /* (rows) roots of unity of that order */
    const float *real_re, *real_im;       /* (n_fft / 2) roots of unity of order n_fft */
    const size_t *reversed[2];            /* bit reversals of rows and of columns */
    state *kept;
    size_t n_states, state_floats;
};

struct edgese_stream {
    const edgese_weights *weights;
    size_t n_bytes, most; /* hops worked on at a time */
    unsigned options;
    float *states;
    /* work space; rows of bands are (K, T, pitch) */
    float *wave, *re, *im, *features, *x, *normed, *uz, *u, *projected, *steps, *decay, *y, *head, *hidden, *answer;
    float *bins[3], *fft, *panels; /* panels: of float16 and INT8 weights made float32 */
};

/* Memory: what builds weights or a stream runs twice, to count and to fill. */

typedef struct {
    char *base;
    size_t used;
} arena;

static void *take(arena *a, size_t count, size_t size)
{
    void *place = a->base ? a->base + a->used : NULL;
    a->used += (count * size + 63) / 64 * 64;
    return place;
}

static float *take_floats(arena *a, size_t count)
{
    return take(a, count, sizeof(float));
}

static void *zeroed(size_t n_bytes)
{
    void *memory = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
    if (memory)
        memset(memory, 0, n_bytes);
    return memory;
}

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static void say(char *error, const char *format, ...)
{
    va_list values;
    if (!error || error[0]) /* the first cause counts */
        return;
    va_start(values, format);
    vsnprintf(error, EDGESE_ERROR_SIZE, format, values);
    va_end(values);
}

/* The file: header (64 bytes), sizes (64), widths of the bands, table of tensors, metadata, tensors. */

#define MAGIC "edgese\r\n"
#define VERSION 1u
#define HEADER 64
#define TABLE (HEADER + 64)
#define ENTRY 96

typedef struct {
    const unsigned char *bytes;
    size_t n_bytes, table, n_tensors, n_metadata;
    char *error;
    int failed;
} file;

static uint32_t word(const unsigned char *bytes)
{
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static uint64_t long_word(const unsigned char *bytes)
{
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static float number(const unsigned char *bytes)
{
    float value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* SHA-256 (FIPS 180-4). */
static void sha256_block(uint32_t *h, const unsigned char *bytes)
{
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
#define TURN(x, n) (((x) >> (n)) | ((x) << (32 - (n))))
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)bytes[4 * i] << 24 | (uint32_t)bytes[4 * i + 1] << 16 | (uint32_t)bytes[4 * i + 2] << 8 |
               (uint32_t)bytes[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] + (TURN(w[i - 15], 7) ^ TURN(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (TURN(w[i - 2], 17) ^ TURN(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(s, h, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t one = s[7] + (TURN(s[4], 6) ^ TURN(s[4], 11) ^ TURN(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) +
                       k[i] + w[i];
        uint32_t two = (TURN(s[0], 2) ^ TURN(s[0], 13) ^ TURN(s[0], 22)) +
                       ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += one;
        s[0] = one + two;
    }
    for (int i = 0; i < 8; i++)
        h[i] += s[i];
#undef TURN
}

static void sha256(const unsigned char *bytes, size_t n_bytes, unsigned char *digest)
{
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    unsigned char last[128] = {0};
    size_t whole = n_bytes / 64 * 64, rest = n_bytes - whole, end = rest < 56 ? 64 : 128;
    for (size_t at = 0; at < whole; at += 64)
        sha256_block(h, bytes + at);
    if (rest)
        memcpy(last, bytes + whole, rest);
    last[rest] = 0x80;
    for (int i = 0; i < 8; i++)
        last[end - 1 - (size_t)i] = (unsigned char)((uint64_t)n_bytes * 8 >> 8 * i);
    for (size_t at = 0; at < end; at += 64)
        sha256_block(h, last + at);
    for (int i = 0; i < 32; i++)
        digest[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}

typedef struct {
    const unsigned char *bytes; /* NULL where there is none */
    int kind;
} tensor;

static size_t size_of(int kind)
{
    return kind == FLOAT32 ? 4 : kind == FLOAT16 ? 2 : 1;
}

static tensor refuse(file *f, const char *name, const char *found)
{
    tensor none = {NULL, FLOAT32};
    say(f->error, "%s: %s; write the weights file again", name, found);
    f->failed = 1;
    return none;
}

/* The tensor of this name with these axes (0: none); a product may be of any kind, all else is float32. */
static tensor find(file *f, int any_kind, const char *name, size_t one, size_t two, size_t three)
{
    const size_t dims[4] = {one, two, three, 0};
    size_t count = one * (two ? two : 1) * (three ? three : 1);
    tensor found = {NULL, FLOAT32};
    if (f->failed)
        return found;
    for (size_t i = 0; i < f->n_tensors; i++) {
        const unsigned char *entry = f->bytes + f->table + i * ENTRY;
        uint32_t kind = word(entry + 64);
        uint64_t offset = long_word(entry + 88);
        if (strncmp((const char *)entry, name, 64))
            continue;
        for (size_t axis = 0; axis < 4; axis++)
            if (word(entry + 72 + 4 * axis) != dims[axis])
                return refuse(f, name, "found another shape than the sizes in the file's header want");
        if (kind > INT8 || (kind != FLOAT32 && !any_kind))
            return refuse(f, name, "found another type of number than is wanted");
        if (offset > f->n_bytes || f->n_bytes - offset < count * size_of((int)kind))
            return refuse(f, name, "reaches beyond the end of the file");
        found.bytes = f->bytes + offset;
        found.kind = (int)kind;
        for (size_t at = 0; at < count && kind != INT8; at++) {
            uint32_t bits = 0, most = kind == FLOAT32 ? 0x7f800000u : 0x7c00u;
            memcpy(&bits, found.bytes + at * size_of(found.kind), size_of(found.kind));
            if ((bits & most) == most)
                return refuse(f, name, "holds a value that is not finite");
        }
        return found;
    }
    return refuse(f, name, "not in the file");
}

/* Floats of a tensor of `rows` rows, each padded; NULL where memory is only counted. */
static float *floats(arena *a, tensor found, size_t rows, size_t row)
{
    float *place = take_floats(a, rows * padded(row));
    for (size_t r = 0; place && found.bytes && r < rows; r++)
        memcpy(place + r * padded(row), found.bytes + r * row * sizeof(float), row * sizeof(float));
    return place;
}

static float *vector(arena *a, file *f, const char *prefix, const char *name, size_t n)
{
    char text[64];
    snprintf(text, sizeof text, "%s%s", prefix, name);
    return floats(a, find(f, 0, text, n, 0, 0), 1, n);
}

/* A layer's tensors: weights, the scale of each column where they are INT8, and the bias of each or none. */
typedef struct {
    tensor weight, scale, bias;
} layer;

/* Where a column's weights begin, and its scale and bias; an empty column holds zeros. */
typedef struct {
    size_t weight, value;
} column;

#define EMPTY SIZE_MAX

static layer find_layer(file *f, const char *weight, const char *bias, const size_t *dims, const size_t *values)
{
    char text[64];
    layer found = {{NULL, FLOAT32}, {NULL, FLOAT32}, {NULL, FLOAT32}};
    found.weight = find(f, 1, weight, dims[0], dims[1], dims[2]);
    snprintf(text, sizeof text, "%s.scale", weight);
    if (found.weight.kind == INT8)
        found.scale = find(f, 0, text, values[0], values[1], 0);
    if (bias)
        found.bias = find(f, 0, bias, values[0], values[1], 0);
    return found;
}

static const float *values_of(arena *a, tensor found, size_t n, const column *columns)
{
    float *place = take_floats(a, padded(n));
    for (size_t c = 0; place && found.bytes && c < n; c++)
        if (columns[c].weight != EMPTY)
            memcpy(place + c, found.bytes + columns[c].value * sizeof(float), sizeof(float));
    return place;
}

/* Packs a product of n columns: element (row, c) of the weights lies at row * step + columns[c].weight. */
static void pack(arena *a, product *p, layer found, size_t k, size_t n, size_t step, const column *columns)
{
    size_t size = size_of(found.weight.kind);
    unsigned char *place = take(a, k * padded(n), size);
    p->k = k;
    p->n = padded(n);
    p->kind = found.weight.kind;
    p->data = place;
    for (size_t c = 0; place && found.weight.bytes && c < n; c++)
        for (size_t row = 0; columns[c].weight != EMPTY && row < k; row++)
            memcpy(place + (c / PANEL * PANEL * k + row * PANEL + c % PANEL) * size,
                   found.weight.bytes + (row * step + columns[c].weight) * size, size);
    p->scale = p->kind == INT8 ? values_of(a, found.scale, n, columns) : NULL;
    p->bias = found.bias.bytes ? values_of(a, found.bias, n, columns) : NULL;
}

/* A linear layer, weight (n, k); of two parts of n / 2, the second begins at a multiple of PANEL. */
static void linear(arena *a, file *f, product *p, const char *prefix, const char *name, size_t n, size_t k,
                   int has_bias, size_t parts, column *columns)
{
    char weight[64], bias[64];
    size_t dims[] = {n, k, 0}, values[] = {n, 0}, part = n / parts, wide = parts > 1 ? parts * padded(part) : n;
    snprintf(weight, sizeof weight, "%s%s.weight", prefix, name);
    snprintf(bias, sizeof bias, "%s%s.bias", prefix, name);
    for (size_t c = 0; c < wide; c++)
        columns[c].weight = EMPTY;
    for (size_t c = 0; c < n; c++)
        columns[c / part * padded(part) + c % part] = (column){c * k, c};
    pack(a, p, find_layer(f, weight, has_bias ? bias : NULL, dims, values), k, wide, 1, columns);
}

/* A product a band: of weights (K, k, n), or (F, 3, n), where `split`, of which a band has so many rows as it has
 * bins; bias (K, n). */
static product *per_band(arena *a, file *f, const edgese_weights *w, const char *weight, const char *bias, int split,
                         size_t k, size_t n, column *columns)
{
    size_t dims[] = {split ? w->bins : w->bands, k, n}, values[] = {w->bands, n}, row = 0;
    product *products = take(a, w->bands, sizeof *products), counted;
    layer all = find_layer(f, weight, bias, dims, values);
    for (size_t band = 0; band < w->bands; band++) {
        size_t rows = split ? k * word(f->bytes + TABLE + 4 * band) : k;
        for (size_t c = 0; c < n; c++)
            columns[c] = (column){row * n + c, band * n + c};
        pack(a, products ? products + band : &counted, all, rows, n, n, columns);
        row += rows;
    }
    return products;
}

/* The last products of a decoder, weight (F, values, hidden), bias (F, values): a band's columns are the first values
 * of its bins, then the second ones. */
static product *last_products(arena *a, file *f, const edgese_weights *w, const char *prefix, size_t n_values,
                              column *columns)
{
    char weight[64], bias[64];
    size_t k = w->hidden, dims[] = {w->bins, n_values, k}, values[] = {w->bins, n_values}, bin = 0;
    product *products = take(a, w->bands, sizeof *products), counted;
    layer all;
    snprintf(weight, sizeof weight, "%sweight", prefix);
    snprintf(bias, sizeof bias, "%sbias", prefix);
    all = find_layer(f, weight, bias, dims, values);
    for (size_t band = 0; band < w->bands; band++) {
        size_t width = word(f->bytes + TABLE + 4 * band);
        for (size_t c = 0; c < n_values * width; c++) {
            size_t value = (bin + c % width) * n_values + c / width;
            columns[c] = (column){value * k, value};
        }
        pack(a, products ? products + band : &counted, all, k, n_values * width, 1, columns);
        bin += width;
    }
    return products;
}

static const size_t *bit_reversal(arena *a, size_t n)
{
    size_t *place = take(a, n, sizeof *place);
    for (size_t i = 0; place && i < n; i++) {
        place[i] = 0;
        for (size_t bit = 1; bit < n; bit *= 2)
            place[i] = place[i] * 2 + (i / bit & 1);
    }
    return place;
}

static void build_transform(arena *a, edgese_weights *w)
{
    const double turn = 6.283185307179586476925286766559;
    size_t half = w->n_fft / 2;
    float *window = take_floats(a, w->n_fft), *synthesis = take_floats(a, w->n_fft);
    float *twiddle_re = take_floats(a, half), *twiddle_im = take_floats(a, half);
    float *real_re = take_floats(a, half), *real_im = take_floats(a, half), *root_re, *root_im;
    for (w->rows = 1; w->rows * w->rows < half; w->rows *= 2)
        ;
    w->columns = half / w->rows;
    root_re = take_floats(a, w->rows);
    root_im = take_floats(a, w->rows);
    w->reversed[0] = bit_reversal(a, w->rows);
    w->reversed[1] = bit_reversal(a, w->columns);
    w->window = window, w->synthesis = synthesis;
    w->twiddle_re = twiddle_re, w->twiddle_im = twiddle_im;
    w->root_re = root_re, w->root_im = root_im;
    w->real_re = real_re, w->real_im = real_im;
    if (!window)
        return;
    for (size_t i = 0; i < w->n_fft; i++) { /* square root of a Hann window */
        double value = sin(turn / 2 * (double)i / (double)w->n_fft);
        window[i] = (float)value;
        synthesis[i] = (float)(value * 2 * (double)w->hop / (double)w->n_fft);
    }
    for (size_t i = 0; i < half; i++) {
        double angle = turn * (double)(i / w->columns * (i % w->columns)) / (double)half;
        twiddle_re[i] = (float)cos(angle), twiddle_im[i] = (float)-sin(angle);
        real_re[i] = (float)cos(turn * (double)i / (double)w->n_fft);
        real_im[i] = (float)-sin(turn * (double)i / (double)w->n_fft);
    }
    for (size_t i = 0; i < w->rows; i++) {
        root_re[i] = (float)cos(turn * (double)i / (double)w->rows);
        root_im[i] = (float)-sin(turn * (double)i / (double)w->rows);
    }
}

static void keep(edgese_weights *w, const char *name, size_t index, size_t one, size_t two, size_t three)
{
    size_t row = three ? three : one, rows = three ? one * two : 1;
    if (w->kept) {
        state *s = w->kept + w->n_states;
        if (three)
            snprintf(s->name, sizeof s->name, "%s_%u", name, (unsigned)index % 1000);
        else
            snprintf(s->name, sizeof s->name, "%s", name);
        s->dims[0] = one, s->dims[1] = two, s->dims[2] = three;
        s->rows = rows, s->row = row;
        s->place = w->state_floats;
    }
    w->n_states++;
    w->state_floats += rows * padded(row);
}

/* Fills `w` in its arena, or counts what that takes. */
static void build(arena *a, file *f, edgese_weights *w, column *columns)
{
    char prefix[32];
    size_t E = w->inner, D = w->channels;
    size_t *starts;
    float *ones;
    char *metadata = take(a, f->n_metadata + 1, 1);
    if (metadata)
        memcpy(metadata, f->bytes + f->table + f->n_tensors * ENTRY, f->n_metadata);
    w->metadata = metadata;
    starts = take(a, w->bands + 1, sizeof *starts);
    for (size_t band = 0; starts && band < w->bands; band++)
        starts[band + 1] = starts[band] + word(f->bytes + TABLE + 4 * band);
    w->starts = starts;
    ones = take_floats(a, w->d);
    for (size_t i = 0; ones && i < D; i++)
        ones[i] = 1;
    w->ones = ones;
    w->split = per_band(a, f, w, "split.weight", "split.bias", 1, 3, D, columns);
    w->blocks = take(a, w->layers, sizeof *w->blocks);
    for (size_t i = 0; i < w->layers; i++) {
        block counted, *b = w->blocks ? w->blocks + i : &counted;
        char name[64];
        float *rates;
        size_t decays = w->rank ? w->rank : w->heads;
        snprintf(prefix, sizeof prefix, "blocks.%u.", (unsigned)i % 1000);
        b->norm_weight = vector(a, f, prefix, "norm.weight", D);
        b->norm_bias = vector(a, f, prefix, "norm.bias", D);
        linear(a, f, &b->in, prefix, "in_proj", 2 * E, D, 0, 2, columns);
        snprintf(name, sizeof name, "%sconv_weight", prefix);
        b->conv_weight = floats(a, find(f, 0, name, w->taps, E, 0), w->taps, E);
        b->conv_bias = vector(a, f, prefix, "conv_bias", E);
        linear(a, f, &b->x, prefix, "x_proj", decays + 2 * w->states, E, 0, 1, columns);
        if (w->rank)
            linear(a, f, &b->dt, prefix, "dt_proj", w->heads, w->rank, 0, 1, columns);
        b->dt_bias = vector(a, f, prefix, "dt_bias", w->heads);
        snprintf(name, sizeof name, "%sa_log", prefix);
        rates = floats(a, find(f, 0, name, w->decay_rows, w->heads, 0), w->decay_rows, w->heads);
        for (size_t at = 0; rates && at < w->decay_rows * padded(w->heads); at++)
            rates[at] = -expf(rates[at]);
        b->rates = rates;
        b->skip = vector(a, f, prefix, "skip", E);
        linear(a, f, &b->out, prefix, "out_proj", D, E, 0, 1, columns);
    }
    w->mixes = take(a, w->fusions, sizeof *w->mixes);
    for (size_t i = 0; i < w->fusions; i++) {
        fusion counted, *mix = w->mixes ? w->mixes + i : &counted;
        char name[64];
        snprintf(prefix, sizeof prefix, "fusions.%u.", (unsigned)i % 1000);
        mix->norm_weight = vector(a, f, prefix, "norm.weight", D);
        mix->norm_bias = vector(a, f, prefix, "norm.bias", D);
        snprintf(name, sizeof name, "%sbands", prefix);
        mix->bands = floats(a, find(f, 0, name, w->bands, w->bands, 0), w->bands, w->bands);
        snprintf(name, sizeof name, "%sbias", prefix);
        mix->bias = floats(a, find(f, 0, name, w->bands, 1, 0), 1, w->bands);
        linear(a, f, &mix->channels, prefix, "channels", D, D, 1, 1, columns);
    }
    w->norm_weight = vector(a, f, "", "norm.weight", D);
    w->norm_bias = vector(a, f, "", "norm.bias", D);
    for (int i = 0; i < N_DECODERS; i++) {
        char weight[64], bias[64];
        const char *name = i == MASK ? "magnitude_" : "phase_";
        linear(a, f, &w->heads_of[i], name, "head", D, D, 1, 1, columns);
        snprintf(prefix, sizeof prefix, "%sdecoder.", name);
        snprintf(weight, sizeof weight, "%shidden_weight", prefix);
        snprintf(bias, sizeof bias, "%shidden_bias", prefix);
        w->first[i] = per_band(a, f, w, weight, bias, 0, D, w->hidden, columns);
        w->last[i] = last_products(a, f, w, prefix, i == MASK ? 1 : 2, columns);
    }
    w->pcs = vector(a, f, "pcs.", "exponents", w->bins);
    w->pcs_constants = vector(a, f, "pcs.", "constants", 3);
    build_transform(a, w);
    w->n_states = w->state_floats = 0;
    w->kept = take(a, 2 + 2 * w->layers, sizeof *w->kept);
    keep(w, "analysis", 0, w->overlap, 0, 0);
    keep(w, "synthesis", 0, w->overlap, 0, 0);
    for (size_t i = 0; i < w->layers; i++) {
        keep(w, "conv", i, w->bands, w->taps - 1, E);
        keep(w, "ssm", i, w->bands, w->states, E);
    }
}

/* Sizes from the header; 0, or -1 with an error's text. */
static int read_sizes(file *f, edgese_weights *w)
{
    const unsigned char *sizes = f->bytes + HEADER;
    size_t *places[] = {&w->rate, &w->n_fft, &w->hop, &w->bands, &w->channels, &w->inner, &w->states, &w->heads,
                        &w->rank, &w->decay_rows, &w->taps, &w->layers, &w->fusions, &w->hidden};
    size_t bins = 0;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        *places[i] = word(sizes + 4 * i);
        if (*places[i] > (i ? 8192 : 1000000) || (!*places[i] && places[i] != &w->rank)) {
            say(f->error, "size %u of the header is %u; write the weights file again", (unsigned)i,
                (unsigned)*places[i]);
            return -1;
        }
    }
    w->compression = number(sizes + 56);
    f->table = TABLE + 4 * w->bands;
    if (f->table + f->n_tensors * ENTRY + f->n_metadata > f->n_bytes) {
        say(f->error, "found %lu bytes, too few for what the header names; copy the file again",
            (unsigned long)f->n_bytes);
        return -1;
    }
    w->widest = 0;
    for (size_t band = 0; band < w->bands; band++) {
        size_t width = word(f->bytes + TABLE + 4 * band);
        if (width < 1 || width > 8192) {
            say(f->error, "band %u has %lu bins; write the weights file again", (unsigned)band, (unsigned long)width);
            return -1;
        }
        bins += width;
        w->widest = width > w->widest ? width : w->widest;
    }
    w->bins = w->n_fft / 2 + 1;
    w->overlap = w->n_fft - w->hop;
    if (w->n_fft < 512 || w->n_fft & (w->n_fft - 1) || w->n_fft % w->hop || w->hop == w->n_fft) {
        say(f->error, "n_fft %u with a hop of %u: wanted a power of two from 512 on, and a divisor of it",
            (unsigned)w->n_fft, (unsigned)w->hop);
        return -1;
    }
    if (bins != w->bins || w->inner % w->heads || (w->decay_rows != 1 && w->decay_rows != w->states) ||
        (w->decay_rows > 1 && w->heads != w->inner) || (w->fusions != 1 && w->fusions != w->layers) ||
        !(w->compression > 0 && w->compression <= 1) || w->taps < 2) {
        say(f->error, "the sizes in the header do not fit each other; write the weights file again");
        return -1;
    }
    w->d = padded(w->channels);
    w->e = padded(w->inner);
    w->x_pitch = padded((w->rank ? w->rank : w->heads) + 2 * w->states);
    w->bins_pitch = padded(w->bins);
    w->most_rows = 3 * w->widest;
    w->most_rows = w->inner > w->most_rows ? w->inner : w->most_rows;
    w->most_rows = w->hidden > w->most_rows ? w->hidden : w->most_rows;
    w->most_rows = w->channels > w->most_rows ? w->channels : w->most_rows;
    w->most_rows = w->rank > w->most_rows ? w->rank : w->most_rows;
    return 0;
}

static void choose_instructions(edgese_weights *w);

edgese_weights *edgese_open_memory(const void *data, size_t n_bytes, char *error)
{
    file f = {data, n_bytes, 0, 0, 0, error, 0};
    edgese_weights sizes, *w = NULL;
    unsigned char digest[32];
    arena a = {NULL, 0};
    column *columns;
    if (error)
        error[0] = 0;
    memset(&sizes, 0, sizeof sizes);
    if (!data || n_bytes < TABLE || memcmp(data, MAGIC, 8)) {
        say(error, "not a weights file of edgese; `edgese export --native` writes one");
        return NULL;
    }
    if (word(f.bytes + 8) != VERSION) {
        say(error, "weights file of version %u, wanted %u; write it again", (unsigned)word(f.bytes + 8), VERSION);
        return NULL;
    }
    if (long_word(f.bytes + 16) != n_bytes) {
        say(error, "found %lu bytes, wanted the %lu that its header names; copy the file again",
            (unsigned long)n_bytes, (unsigned long)long_word(f.bytes + 16));
        return NULL;
    }
    sha256(f.bytes + HEADER, n_bytes - HEADER, digest);
    if (memcmp(digest, f.bytes + 32, sizeof digest)) {
        say(error, "damaged: its SHA-256 is not the one in its header; copy the file again");
        return NULL;
    }
    f.n_tensors = word(f.bytes + 12);
    f.n_metadata = word(f.bytes + 24);
    if (read_sizes(&f, &sizes))
        return NULL;
    columns = malloc((2 * sizes.e + padded(sizes.inner) + sizes.x_pitch + padded(sizes.hidden) + sizes.d +
                      padded(2 * sizes.widest)) * sizeof *columns);
    if (columns) {
        take(&a, 1, sizeof *w);
        build(&a, &f, &sizes, columns);
        if (!f.failed)
            a.base = zeroed(a.used);
        if (a.base) {
            a.used = 0;
            w = take(&a, 1, sizeof *w);
            *w = sizes;
            build(&a, &f, w, columns);
            w->n_bytes = a.used;
            choose_instructions(w);
        }
    }
    free(columns);
    if (!w)
        say(error, "no memory for %lu bytes of weights", (unsigned long)a.used);
    return w;
}

edgese_weights *edgese_open(const char *path, char *error)
{
    edgese_weights *w = NULL;
    unsigned char *bytes = NULL;
    char cause[EDGESE_ERROR_SIZE] = "";
    long n_bytes = -1;
    FILE *stream = fopen(path, "rb");
    if (error)
        error[0] = 0;
    if (stream && !fseek(stream, 0, SEEK_END) && (n_bytes = ftell(stream)) > 0 && !fseek(stream, 0, SEEK_SET)) {
        bytes = malloc((size_t)n_bytes);
        if (bytes && fread(bytes, 1, (size_t)n_bytes, stream) == (size_t)n_bytes)
            w = edgese_open_memory(bytes, (size_t)n_bytes, cause);
    }
    if (stream)
        fclose(stream);
    free(bytes);
    if (!w)
        say(error, "%.100s: %s", path, cause[0] ? cause : n_bytes == 0 ? "an empty file" : "cannot be read");
    return w;
}

void edgese_close(edgese_weights *weights)
{
    free(weights);
}

size_t edgese_sample_rate(const edgese_weights *weights)
{
    return weights->rate;
}

size_t edgese_hop(const edgese_weights *weights)
{
    return weights->hop;
}

size_t edgese_delay(const edgese_weights *weights)
{
    return weights->overlap;
}

size_t edgese_latency(const edgese_weights *weights)
{
    return weights->n_fft;
}

const char *edgese_metadata(const edgese_weights *weights)
{
    return weights->metadata;
}

size_t edgese_weights_bytes(const edgese_weights *weights)
{
    return weights->n_bytes;
}

const char *edgese_instructions(const edgese_weights *weights)
{
    return weights->instructions;
}

/* Streams. */

static void lay_out(arena *a, edgese_stream *s, const edgese_weights *w, size_t T)
{
    size_t rows = w->bands * T, widest = padded(2 * w->widest);
    s->states = take_floats(a, w->state_floats);
    s->wave = take_floats(a, w->overlap + T * w->hop);
    s->re = take_floats(a, T * w->bins_pitch);
    s->im = take_floats(a, T * w->bins_pitch);
    s->features = take_floats(a, T * 3 * w->bins_pitch);
    s->x = take_floats(a, rows * w->d);
    s->normed = take_floats(a, rows * w->d);
    s->uz = take_floats(a, rows * 2 * w->e);
    s->u = take_floats(a, rows * w->e);
    s->projected = take_floats(a, rows * w->x_pitch + PANEL);
    s->steps = take_floats(a, rows * w->e);
    s->decay = take_floats(a, rows * w->e);
    s->y = take_floats(a, rows * w->e);
    s->head = take_floats(a, rows * w->d);
    s->hidden = take_floats(a, T * padded(w->hidden));
    s->answer = take_floats(a, T * widest);
    for (int i = 0; i < 3; i++)
        s->bins[i] = take_floats(a, T * w->bins_pitch);
    s->fft = take_floats(a, 2 * w->n_fft);
    s->panels = take_floats(a, PANELS_SPREAD * PANEL * w->most_rows);
}

edgese_stream *edgese_start(const edgese_weights *weights, size_t block, unsigned options, char *error)
{
    arena a = {NULL, 0};
    edgese_stream counted, *s;
    if (error)
        error[0] = 0;
    if (block < 1 || block > EDGESE_MAX_BLOCK || options & ~(unsigned)(EDGESE_PCS | EDGESE_PASS)) {
        say(error, "a stream of %lu hops with options %u: wanted 1 to %d hops, and options that there are",
            (unsigned long)block, options, EDGESE_MAX_BLOCK);
        return NULL;
    }
    take(&a, 1, sizeof *s);
    lay_out(&a, &counted, weights, block);
    a.base = zeroed(a.used);
    if (!a.base) {
        say(error, "no memory for %lu bytes of a stream", (unsigned long)a.used);
        return NULL;
    }
    a.used = 0;
    s = take(&a, 1, sizeof *s);
    lay_out(&a, s, weights, block);
    s->weights = weights;
    s->n_bytes = a.used;
    s->most = block;
    s->options = options;
    return s;
}

void edgese_stop(edgese_stream *stream)
{
    free(stream);
}

size_t edgese_stream_bytes(const edgese_stream *stream)
{
    return stream->n_bytes;
}

void edgese_reset(edgese_stream *stream)
{
    memset(stream->states, 0, stream->weights->state_floats * sizeof(float));
}

const char *edgese_state_name(const edgese_weights *weights, size_t index)
{
    return index < weights->n_states ? weights->kept[index].name : NULL;
}

static const state *state_of(const edgese_weights *w, const char *name)
{
    for (size_t i = 0; i < w->n_states; i++)
        if (!strcmp(w->kept[i].name, name))
            return w->kept + i;
    return NULL;
}

size_t edgese_state_size(const edgese_weights *weights, const char *name, size_t *dims)
{
    const state *s = state_of(weights, name);
    if (s && dims)
        memcpy(dims, s->dims, sizeof s->dims);
    return s ? s->rows * s->row : 0;
}

int edgese_get_state(const edgese_stream *stream, const char *name, float *values, size_t n)
{
    const state *s = state_of(stream->weights, name);
    if (!s || n != s->rows * s->row)
        return -1;
    for (size_t r = 0; r < s->rows; r++)
        memcpy(values + r * s->row, stream->states + s->place + r * padded(s->row), s->row * sizeof(float));
    return 0;
}

int edgese_set_state(edgese_stream *stream, const char *name, const float *values, size_t n)
{
    const state *s = state_of(stream->weights, name);
    if (!s || n != s->rows * s->row)
        return -1;
    for (size_t r = 0; r < s->rows; r++)
        memcpy(stream->states + s->place + r * padded(s->row), values + r * s->row, s->row * sizeof(float));
    return 0;
}

/* Instruction sets. */

#define EDGESE_PART_2
#define SSE2 1
#define AVX2 2
#define AVX512 3
#define NEON 4
#define WASM 5
#define GENERIC 6
#define JOIN_(name, set) name##_##set
#define JOIN(name, set) JOIN_(name, set)

#if defined(__x86_64__)
#define SET 1
#define SUFFIX sse2
#define LANES 4
#include "edgese.c"
#undef SET
#undef SUFFIX
#undef LANES

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define SET 2
#define SUFFIX avx2
#define LANES 8
#include "edgese.c"
#undef SET
#undef SUFFIX
#undef LANES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif
#define SET 3
#define SUFFIX avx512
#define LANES 16
#include "edgese.c"
#undef SET
#undef SUFFIX
#undef LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else /* machines with one instruction set, or none that is known here */
#if defined(__aarch64__) && defined(__ARM_NEON)
#define SET 4
#define SUFFIX neon
#elif defined(__wasm_simd128__)
#define SET 5
#define SUFFIX wasm
#else
#define SET 6
#define SUFFIX generic
#endif
#define LANES 4
#include "edgese.c"
#endif

/* Instruction sets that this build has, the best last. */
typedef struct {
    const char *name;
    size_t (*run)(edgese_stream *, const float *, float *, size_t);
} instruction_set;

static const instruction_set SETS[] = {
#if defined(__x86_64__)
    {"sse2", hops_sse2}, {"avx2", hops_avx2}, {"avx512", hops_avx512},
#elif SET == NEON
    {"neon", hops_neon},
#elif SET == WASM
    {"wasm", hops_wasm},
#else
    {"generic", hops_generic},
#endif
};

static int runs_here(size_t index)
{
#if defined(__x86_64__)
    if (index == 1)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); /* and all of these have f16c */
    if (index == 2)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && runs_here(1);
#endif
    (void)index;
    return 1;
}

static void use(edgese_weights *w, size_t index)
{
    w->run = SETS[index].run;
    w->instructions = SETS[index].name;
}

static void choose_instructions(edgese_weights *w)
{
    for (size_t index = 0; index < sizeof SETS / sizeof *SETS; index++)
        if (runs_here(index))
            use(w, index);
}

int edgese_use(edgese_weights *weights, const char *instructions)
{
    for (size_t index = 0; index < sizeof SETS / sizeof *SETS; index++)
        if (!strcmp(SETS[index].name, instructions) && runs_here(index)) {
            use(weights, index);
            return 0;
        }
    return -1;
}

size_t edgese_process(edgese_stream *stream, const float *in, float *out, size_t n_hops)
{
    size_t no_sound = 0;
    /* Numbers below 1e-38 are taken for 0: a processor needs a hundred times as long for them. */
#if defined(__x86_64__)
    unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040u);
#elif defined(__aarch64__)
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(mode | (uint64_t)1 << 24));
#endif
    while (n_hops) {
        size_t now = n_hops < stream->most ? n_hops : stream->most;
        no_sound += stream->weights->run(stream, in, out, now);
        in += now * stream->weights->hop;
        out += now * stream->weights->hop;
        n_hops -= now;
    }
#if defined(__x86_64__)
    _mm_setcsr(mode);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
#endif
    return no_sound;
}

#else /* EDGESE_PART_2: all arithmetic, for one instruction set; SET, SUFFIX and LANES say which */

#define NAME(name) JOIN(name, SUFFIX)
#define vf NAME(vf)
#define vi NAME(vi)
#define loaded NAME(loaded)
#define raw NAME(raw)
#define load NAME(load)
#define store NAME(store)
#define splat NAME(splat)
#define fma_ NAME(fma)
#define max_ NAME(max)
#define min_ NAME(min)
#define root NAME(root)
#define sum NAME(sum)
#define exp_ NAME(exp)
#define log_ NAME(log)
#define sigmoid NAME(sigmoid)
#define softplus NAME(softplus)
#define weights_of NAME(weights_of)
#define tile NAME(tile)
#define strip NAME(strip)
#define times NAME(times)
#define multiply NAME(multiply)
#define mix_bands NAME(mix_bands)
#define layer_norm NAME(layer_norm)
#define silu_rows NAME(silu_rows)
#define transform_rows NAME(transform_rows)
#define transform NAME(transform)
#define analyse NAME(analyse)
#define synthesise NAME(synthesise)
#define compress NAME(compress)
#define convolve NAME(convolve)
#define spread NAME(spread)
#define scan NAME(scan)
#define mamba NAME(mamba)
#define decode NAME(decode)
#define apply NAME(apply)
#define stretch NAME(stretch)
#define hops NAME(hops)

#define INLINE static inline __attribute__((always_inline))
#define VECTORS (PANEL / LANES) /* of a panel's row */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef float loaded __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef unsigned char raw __attribute__((may_alias));

INLINE vf load(const float *place)
{
    return *(const loaded *)place;
}

INLINE void store(float *place, vf x)
{
    *(loaded *)place = x;
}

INLINE vf splat(float x)
{
#if LANES == 4
    return (vf){x, x, x, x};
#elif LANES == 8
    return (vf){x, x, x, x, x, x, x, x};
#else
    return (vf){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#endif
}

/* What the vector extensions lack: a * b + c rounded once, the larger and the smaller (b where one is NaN), the square
 * root. */
INLINE vf fma_(vf a, vf b, vf c)
{
#if SET == AVX2
    return _mm256_fmadd_ps(a, b, c);
#elif SET == AVX512
    return _mm512_fmadd_ps(a, b, c);
#elif SET == NEON
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

INLINE vf max_(vf a, vf b)
{
#if SET == SSE2
    return _mm_max_ps(a, b);
#elif SET == AVX2
    return _mm256_max_ps(a, b);
#elif SET == AVX512
    return _mm512_max_ps(a, b);
#elif SET == NEON
    return vmaxq_f32(a, b);
#elif SET == WASM
    return (vf)wasm_f32x4_pmax((v128_t)b, (v128_t)a);
#else
    vi more = a > b;
    return (vf)(((vi)a & more) | ((vi)b & ~more));
#endif
}

INLINE vf min_(vf a, vf b)
{
    return -max_(-a, -b);
}

INLINE vf root(vf x)
{
#if SET == SSE2
    return _mm_sqrt_ps(x);
#elif SET == AVX2
    return _mm256_sqrt_ps(x);
#elif SET == AVX512
    return _mm512_sqrt_ps(x);
#elif SET == NEON
    return vsqrtq_f32(x);
#elif SET == WASM
    return (vf)wasm_f32x4_sqrt((v128_t)x);
#else
    for (int i = 0; i < LANES; i++)
        x[i] = sqrtf(x[i]);
    return x;
#endif
}

INLINE float sum(vf x)
{
#if SET == AVX512
    return _mm512_reduce_add_ps(x);
#elif SET == AVX2
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

/* e^x for x in [-87.3, 88.3], held there beyond; relative error below 1.2e-7 (polynomial of Cephes' expf, S. Moshier). */
INLINE vf exp_(vf x)
{
    const vf shift = splat(12582912.0f); /* 1.5 * 2^23: what is added to it is rounded to a whole number */
    vf n, r, y;
    vi power;
    x = min_(splat(88.3f), max_(splat(-87.3f), x)); /* NaN stays */
    n = fma_(x, splat(1.44269504088896341f), shift);
    power = ((vi)n - (vi)shift + 127) << 23;
    n -= shift;
    r = fma_(n, splat(-0.693359375f), x);
    r = fma_(n, splat(2.12194440e-4f), r);
    y = fma_(splat(1.9875691500e-4f), r, splat(1.3981999507e-3f));
    y = fma_(y, r, splat(8.3334519073e-3f));
    y = fma_(y, r, splat(4.1665795894e-2f));
    y = fma_(y, r, splat(1.6666665459e-1f));
    y = fma_(y, r, splat(5.0000001201e-1f));
    y = fma_(y, r * r, r) + splat(1);
    return y * (vf)power;
}

/* log x for normal x, -87.3 below; error below 1.2e-7 of the result or 6e-8 (polynomial of Cephes' logf). */
INLINE vf log_(vf x)
{
    vf m, n, y, square;
    vi bits, low;
    x = max_(splat(1.17549435e-38f), x);
    bits = (vi)x;
    m = (vf)((bits & 0x007fffff) | 0x3f000000); /* [0.5, 1) */
    low = m < splat(0.707106781186547524f);
    bits = (bits >> 23) - 126 + low; /* low: -1 where true */
    m = m - splat(1) + (vf)((vi)m & low);
    n = __builtin_convertvector(bits, vf);
    square = m * m;
    y = fma_(splat(7.0376836292e-2f), m, splat(-1.1514610310e-1f));
    y = fma_(y, m, splat(1.1676998740e-1f));
    y = fma_(y, m, splat(-1.2420140846e-1f));
    y = fma_(y, m, splat(1.4249322787e-1f));
    y = fma_(y, m, splat(-1.6668057665e-1f));
    y = fma_(y, m, splat(2.0000714765e-1f));
    y = fma_(y, m, splat(-2.4999993993e-1f));
    y = fma_(y, m, splat(3.3333331174e-1f));
    y = y * m * square;
    y = fma_(n, splat(-2.12194440e-4f), y);
    y = fma_(square, splat(-0.5f), y);
    return fma_(n, splat(0.693359375f), m + y);
}

/* 1 / (1 + e^-x), relative error below 3e-7. */
INLINE vf sigmoid(vf x)
{
    return splat(1) / (splat(1) + exp_(-x));
}

/* log(1 + e^x); the last term gives back what 1 + e^-|x| loses in rounding, or small steps would be wrong by 1e-4. */
INLINE vf softplus(vf x)
{
    vf small = exp_(-max_(x, -x)), whole = splat(1) + small;
    return max_(splat(0), x) + (log_(whole) + (small - (whole - splat(1))) / whole);
}

/* Products. */

INLINE vf weights_of(int kind, const raw *place, size_t at)
{
    if (kind == FLOAT32)
        return load((const float *)place + at);
    if (kind == FLOAT16) {
#if SET == AVX2
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(place + 2 * at)));
#elif SET == AVX512
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(place + 2 * at)));
#elif SET == NEON
        return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(place + 2 * at)));
#else
#if SET == WASM
        vi bits = (vi)wasm_u32x4_load16x4(place + 2 * at);
#else
        uint16_t half[LANES];
        vi bits = {0};
        memcpy(half, place + 2 * at, sizeof half);
        for (int i = 0; i < LANES; i++)
            bits[i] = half[i];
#endif
        /* the exponent's bias differs by 112; a product brings it right, for subnormal numbers too */
        return (vf)(((bits & 0x7fff) << 13)) * splat(0x1p112f) * (vf)(((bits & 0x8000) << 16) | 0x3f800000);
#endif
    }
#if SET == AVX2
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(place + at))));
#elif SET == AVX512
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(place + at))));
#elif SET == WASM
    return (vf)wasm_f32x4_convert_i32x4(
        wasm_i32x4_extend_low_i16x8(wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(place + at))));
#else
    {
        vi bits = {0};
        for (int i = 0; i < LANES; i++)
            bits[i] = (signed char)place[at + (size_t)i];
        return __builtin_convertvector(bits, vf);
    }
#endif
}

/* A tile of a product: `rows` of a, `panels` of the weights. The sums stay in registers. */
INLINE void tile(int rows, int panels, const product *p, int kind, size_t panel, const float *a, size_t a_pitch,
                 float *c, size_t c_pitch, int add)
{
    const raw *b = p->data;
    const size_t k = p->k, start = panel * PANEL * k;
    vf sums[6][8];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int j = 0; j < panels * VECTORS; j++)
            sums[r][j] = splat(0);
    for (size_t i = 0; i < k; i++) {
        vf column[8];
        UNROLL for (int j = 0; j < panels * VECTORS; j++)
            column[j] = weights_of(kind, b, start + ((size_t)(j / VECTORS) * k + i) * PANEL + (size_t)(j % VECTORS) * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            vf x = splat(a[(size_t)r * a_pitch + i]);
            UNROLL for (int j = 0; j < panels * VECTORS; j++)
                sums[r][j] = fma_(x, column[j], sums[r][j]);
        }
    }
    UNROLL for (int j = 0; j < panels * VECTORS; j++) {
        size_t at = panel * PANEL + (size_t)j * LANES;
        vf scale = p->scale ? load(p->scale + at) : splat(1), bias = p->bias ? load(p->bias + at) : splat(0);
        UNROLL for (int r = 0; r < rows; r++) {
            float *place = c + (size_t)r * c_pitch + at;
            vf y = fma_(sums[r][j], scale, bias);
            store(place, add ? load(place) + y : y);
        }
    }
}

/* Panels at once for so many rows: eight sums or more in flight, no more than the registers hold. */
#define AT_ONCE(rows) (size_t)((rows) == 1 ? 8 / VECTORS : (rows) == 2 ? 4 / VECTORS : (VECTORS == 1 ? 2 : 1))
#if SET == NEON || LANES > 4
#define MOST_ROWS 6
#else
#define MOST_ROWS 3
#endif
#define ROWS_AT_ONCE 30 /* that meet a panel while it is in the first cache */

INLINE void strip(int rows, const product *p, int kind, size_t panel, size_t end, const float *a, size_t a_pitch,
                  float *c, size_t c_pitch, int add)
{
    for (; panel + AT_ONCE(rows) <= end; panel += AT_ONCE(rows))
        tile(rows, (int)AT_ONCE(rows), p, kind, panel, a, a_pitch, c, c_pitch, add);
    for (; AT_ONCE(rows) > 1 && panel < end; panel++)
        tile(rows, 1, p, kind, panel, a, a_pitch, c, c_pitch, add);
}

/* c (m, n) = a (m, k) times float32 weights, plus the bias; `add`: added to what is in c. */
static void times(const product *p, const float *a, size_t a_pitch, size_t m, float *c, size_t c_pitch, int add)
{
    const size_t panels = p->n / PANEL, group = m > 2 ? AT_ONCE(6) : panels;
    for (size_t first = 0; first < m; first += ROWS_AT_ONCE) {
        size_t now = m - first < ROWS_AT_ONCE ? m - first : ROWS_AT_ONCE;
        size_t strips = (now + MOST_ROWS - 1) / MOST_ROWS;
        for (size_t begin = 0; begin < panels; begin += group) {
            size_t end = begin + group < panels ? begin + group : panels, row = first;
            for (size_t i = 0; i < strips; i++) {
                size_t rows = now / strips + (i < now % strips);
                const float *from = a + row * a_pitch;
                float *to = c + row * c_pitch;
                switch (rows) {
                case 1: strip(1, p, FLOAT32, begin, end, from, a_pitch, to, c_pitch, add); break;
                case 2: strip(2, p, FLOAT32, begin, end, from, a_pitch, to, c_pitch, add); break;
                case 3: strip(3, p, FLOAT32, begin, end, from, a_pitch, to, c_pitch, add); break;
#if MOST_ROWS > 3
                case 4: strip(4, p, FLOAT32, begin, end, from, a_pitch, to, c_pitch, add); break;
                case 5: strip(5, p, FLOAT32, begin, end, from, a_pitch, to, c_pitch, add); break;
                default: strip(6, p, FLOAT32, begin, end, from, a_pitch, to, c_pitch, add); break;
#endif
                }
                row += rows;
            }
        }
    }
}

/* As `times`, of weights of any kind: one row takes them as they are, more rows share a panel made float32. */
static void multiply(const edgese_stream *s, const product *p, const float *a, size_t a_pitch, size_t m, float *c,
                     size_t c_pitch, int add)
{
    if (p->kind == FLOAT32)
        times(p, a, a_pitch, m, c, c_pitch, add);
    else if (m == 1 && p->kind == FLOAT16)
        strip(1, p, FLOAT16, 0, p->n / PANEL, a, a_pitch, c, c_pitch, add);
    else if (m == 1)
        strip(1, p, INT8, 0, p->n / PANEL, a, a_pitch, c, c_pitch, add);
    else
        for (size_t at = 0; at < p->n; at += PANELS_SPREAD * PANEL) {
            product now = *p;
            now.kind = FLOAT32;
            now.data = s->panels;
            now.n = p->n - at < PANELS_SPREAD * PANEL ? p->n - at : PANELS_SPREAD * PANEL;
            now.bias = p->bias ? p->bias + at : NULL;
            now.scale = p->scale ? p->scale + at : NULL;
            for (size_t i = 0; i < now.n * p->k; i += LANES)
                store(s->panels + i, p->kind == FLOAT16 ? weights_of(FLOAT16, p->data, at * p->k + i)
                                                        : weights_of(INT8, p->data, at * p->k + i));
            times(&now, a, a_pitch, m, c + at, c_pitch, add);
        }
}

static void silu_rows(float *x, size_t n)
{
    for (size_t i = 0; i < n; i += LANES) {
        vf y = load(x + i);
        store(x + i, y * sigmoid(y));
    }
}

/* Each output band, (n) floats, a sum of all bands of `from`, and its silu. */
static void mix_bands(const edgese_weights *w, const fusion *mix, const float *from, float *to, size_t n)
{
    const size_t K = w->bands, pitch = padded(K);
    for (size_t at = 0; at < n; at += PANEL)
        for (size_t band = 0; band < K;) {
            const int rows = K - band < MOST_ROWS ? 1 : MOST_ROWS;
            vf sums[MOST_ROWS][VECTORS];
            if (rows == 1) {
                UNROLL for (int j = 0; j < VECTORS; j++)
                    sums[0][j] = splat(mix->bias[band]);
                for (size_t i = 0; i < K; i++)
                    UNROLL for (int j = 0; j < VECTORS; j++)
                        sums[0][j] = fma_(splat(mix->bands[band * pitch + i]), load(from + i * n + at + (size_t)j * LANES), sums[0][j]);
            } else {
                UNROLL for (int r = 0; r < MOST_ROWS; r++)
                    UNROLL for (int j = 0; j < VECTORS; j++)
                        sums[r][j] = splat(mix->bias[band + (size_t)r]);
                for (size_t i = 0; i < K; i++)
                    UNROLL for (int r = 0; r < MOST_ROWS; r++) {
                        vf x = splat(mix->bands[(band + (size_t)r) * pitch + i]);
                        UNROLL for (int j = 0; j < VECTORS; j++)
                            sums[r][j] = fma_(x, load(from + i * n + at + (size_t)j * LANES), sums[r][j]);
                    }
            }
            for (int r = 0; r < rows; r++, band++)
                UNROLL for (int j = 0; j < VECTORS; j++)
                    store(to + band * n + at + (size_t)j * LANES, sums[r][j]);
        }
    silu_rows(to, K * n);
}

static void layer_norm(const edgese_weights *w, const float *weight, const float *bias, const float *x, float *y, size_t rows)
{
    const size_t d = w->d;
    const float share = 1.0f / (float)w->channels;
    for (size_t r = 0; r < rows; r++, x += d, y += d) {
        vf total = splat(0), square = splat(0), mean, scale;
        for (size_t i = 0; i < d; i += LANES)
            total += load(x + i); /* the padding holds zeros */
        mean = splat(sum(total) * share);
        for (size_t i = 0; i < d; i += LANES) {
            vf apart = (load(x + i) - mean) * load(w->ones + i);
            square = fma_(apart, apart, square);
        }
        scale = splat(1.0f / sqrtf(sum(square) * share + 1e-5f));
        for (size_t i = 0; i < d; i += LANES)
            store(y + i, fma_((load(x + i) - mean) * scale, load(weight + i), load(bias + i)));
    }
}

/* Transform of real frames. */

/* Transforms of all columns of (n, columns) over its rows, which lie in bit-reversed order. */
static void transform_rows(const edgese_weights *w, float *re, float *im, size_t n, size_t columns)
{
    for (size_t length = 2; length <= n; length *= 2)
        for (size_t group = 0; group < n; group += length)
            for (size_t j = 0; j < length / 2; j++) {
                const vf wr = splat(w->root_re[j * (w->rows / length)]), wi = splat(w->root_im[j * (w->rows / length)]);
                float *ar = re + (group + j) * columns, *ai = im + (group + j) * columns;
                float *br = ar + length / 2 * columns, *bi = ai + length / 2 * columns;
                for (size_t c = 0; c < columns; c += LANES) {
                    vf xr = load(br + c), xi = load(bi + c), yr = load(ar + c), yi = load(ai + c);
                    vf tr = xr * wr - xi * wi, ti = xr * wi + xi * wr;
                    store(ar + c, yr + tr), store(ai + c, yi + ti);
                    store(br + c, yr - tr), store(bi + c, yi - ti);
                }
            }
}

/* Complex transform of n_fft / 2 points, its rows in bit-reversed order, from work space 0 to work space 1. */
static void transform(const edgese_weights *w, float *re, float *im, float *to_re, float *to_im)
{
    const size_t R = w->rows, C = w->columns;
    transform_rows(w, re, im, R, C);
    for (size_t i = 0; i < R * C; i += LANES) {
        vf xr = load(re + i), xi = load(im + i), wr = load(w->twiddle_re + i), wi = load(w->twiddle_im + i);
        store(re + i, xr * wr - xi * wi), store(im + i, xr * wi + xi * wr);
    }
    for (size_t c = 0; c < C; c++)
        for (size_t r = 0; r < R; r++) {
            to_re[w->reversed[1][c] * R + r] = re[r * C + c];
            to_im[w->reversed[1][c] * R + r] = im[r * C + c];
        }
    transform_rows(w, to_re, to_im, C, R);
}

/* Spectrum (F) of a frame (n_fft). */
static void analyse(const edgese_weights *w, float *work, const float *frame, float *re, float *im)
{
    const size_t half = w->n_fft / 2, C = w->columns;
    float *zr = work, *zi = work + half, *yr = work + 2 * half, *yi = work + 3 * half;
    for (size_t r = 0; r < w->rows; r++)
        for (size_t c = 0; c < C; c++) {
            size_t from = 2 * (r * C + c), to = w->reversed[0][r] * C + c;
            zr[to] = frame[from] * w->window[from];
            zi[to] = frame[from + 1] * w->window[from + 1];
        }
    transform(w, zr, zi, yr, yi);
    re[0] = yr[0] + yi[0], re[half] = yr[0] - yi[0];
    im[0] = im[half] = 0;
    for (size_t k = 1; k <= half / 2; k++) {
        float er = 0.5f * (yr[k] + yr[half - k]), ei = 0.5f * (yi[k] - yi[half - k]);
        float or_ = 0.5f * (yi[k] + yi[half - k]), oi = -0.5f * (yr[k] - yr[half - k]);
        float tr = or_ * w->real_re[k] - oi * w->real_im[k], ti = or_ * w->real_im[k] + oi * w->real_re[k];
        re[half - k] = er - tr, im[half - k] = ti - ei;
        re[k] = er + tr, im[k] = ei + ti;
    }
}

/* Frame (n_fft) of a spectrum, added to `frame`; imaginary parts of the outer bins do not count. */
static void synthesise(const edgese_weights *w, float *work, const float *re, const float *im, float *frame)
{
    const size_t half = w->n_fft / 2, C = w->columns, R = w->rows;
    const float share = 0.5f / (float)half;
    float *zr = work, *zi = work + half, *yr = work + 2 * half, *yi = work + 3 * half;
#define PLACE(k) (w->reversed[0][(k) / C] * C + (k) % C)
    /* real and imaginary parts change places, before and after: that makes the transform its inverse */
    zi[0] = share * (re[0] + re[half]), zr[0] = share * (re[0] - re[half]);
    for (size_t k = 1; k <= half / 2; k++) {
        float er = share * (re[k] + re[half - k]), ei = share * (im[k] - im[half - k]);
        float dr = share * (re[k] - re[half - k]), di = share * (im[k] + im[half - k]);
        float or_ = dr * w->real_re[k] + di * w->real_im[k], oi = di * w->real_re[k] - dr * w->real_im[k];
        zi[PLACE(half - k)] = er + oi, zr[PLACE(half - k)] = or_ - ei;
        zi[PLACE(k)] = er - oi, zr[PLACE(k)] = ei + or_;
    }
#undef PLACE
    (void)R;
    transform(w, zr, zi, yr, yi);
    for (size_t i = 0; i < half; i++) {
        frame[2 * i] += yi[i] * w->synthesis[2 * i];
        frame[2 * i + 1] += yr[i] * w->synthesis[2 * i + 1];
    }
}

/* Real and imaginary part of the compressed spectrum, and log magnitude: (F, 3). edgese/model/compression.py */
static void compress(const edgese_weights *w, const float *re, const float *im, float *to)
{
    const vf exponent = splat(w->compression - 1);
    for (size_t bin = 0; bin < w->bins; bin += LANES) {
        vf x = load(re + bin), y = load(im + bin);
        vf level = splat(0.5f) * log_(fma_(x, x, fma_(y, y, splat(1e-7f))));
        vf gain = exp_(exponent * level);
        vf three[3] = {x * gain, y * gain, splat(0.25f) * level};
        size_t n = w->bins - bin < LANES ? w->bins - bin : LANES;
        for (size_t i = 0; i < n; i++)
            for (int j = 0; j < 3; j++)
                to[3 * (bin + i) + (size_t)j] = three[j][i];
    }
}

/* Mamba block. edgese/model/mamba.py */

/* Depthwise convolution over a band's T frames and its silu; the state, (taps - 1, E), moves on. */
static void convolve(const edgese_weights *w, const block *b, const float *in, size_t in_pitch, float *kept, float *out, size_t T)
{
    const size_t e = w->e, before = w->taps - 1;
#define FRAME(i) ((i) < before ? kept + (i) * e : in + ((i) - before) * in_pitch)
    for (size_t t = 0; t < T; t++, out += e) {
        const float *first = FRAME(t), *weight = b->conv_weight;
        for (size_t at = 0; at < e; at += LANES)
            store(out + at, fma_(load(first + at), load(weight + at), load(b->conv_bias + at)));
        for (size_t tap = 1; tap < before; tap++) {
            const float *frame = FRAME(t + tap);
            weight += e;
            for (size_t at = 0; at < e; at += LANES)
                store(out + at, fma_(load(frame + at), load(weight + at), load(out + at)));
        }
        weight += e;
        for (size_t at = 0; at < e; at += LANES) {
            vf y = fma_(load(in + t * in_pitch + at), load(weight + at), load(out + at));
            store(out + at, y * sigmoid(y));
        }
    }
    for (size_t i = 0; i < before; i++)
        memmove(kept + i * e, FRAME(T + i), e * sizeof(float));
#undef FRAME
}

/* Step sizes of a band and frame, and decays where they are per head: of each head, then of each of its channels. */
static void spread(const edgese_weights *w, float *per_head)
{
    const size_t each = w->inner / w->heads;
    for (size_t head = w->heads; each > 1 && head-- > 0;) { /* from the last one on: a head's channels lie behind it */
        const float value = per_head[head];
        if (each % LANES == 0)
            for (size_t i = 0; i < each; i += LANES)
                store(per_head + head * each + i, splat(value));
        else
            for (size_t i = 0; i < each; i++)
                per_head[head * each + i] = value;
    }
}

/* Selective scan of one frame of a band, skip and gate; h: (N, E). edgese/model/scan.py */
static void scan(const edgese_weights *w, const block *b, const float *steps, const float *decay, const float *in,
                 const float *out, const float *u, const float *gate, float *h, float *y)
{
    const size_t e = w->e, N = w->states;
    for (size_t at = 0; at < e; at += PANEL) {
        vf x[VECTORS], kept[VECTORS], answer[VECTORS];
        UNROLL for (int j = 0; j < VECTORS; j++) {
            size_t i = at + (size_t)j * LANES;
            kept[j] = load((decay ? decay : steps) + i);
            x[j] = load(steps + i) * load(u + i);
            answer[j] = splat(0);
        }
        if (decay)
            for (size_t n = 0; n < N; n++)
                UNROLL for (int j = 0; j < VECTORS; j++) {
                    float *place = h + n * e + at + (size_t)j * LANES;
                    vf now = fma_(kept[j], load(place), splat(in[n]) * x[j]);
                    store(place, now);
                    answer[j] = fma_(splat(out[n]), now, answer[j]);
                }
        else
            for (size_t n = 0; n < N; n++)
                UNROLL for (int j = 0; j < VECTORS; j++) {
                    size_t i = n * e + at + (size_t)j * LANES;
                    vf now = fma_(exp_(kept[j] * load(b->rates + i)), load(h + i), splat(in[n]) * x[j]);
                    store(h + i, now);
                    answer[j] = fma_(splat(out[n]), now, answer[j]);
                }
        UNROLL for (int j = 0; j < VECTORS; j++) {
            size_t i = at + (size_t)j * LANES;
            vf z = load(gate + i);
            store(y + i, fma_(load(u + i), load(b->skip + i), answer[j]) * z * sigmoid(z));
        }
    }
}

static void mamba(edgese_stream *s, const block *b, float *conv, float *ssm, size_t T)
{
    const edgese_weights *w = s->weights;
    const size_t e = w->e, rows = w->bands * T, decays = w->rank ? w->rank : w->heads, heads = padded(w->heads);
    const int by_head = w->decay_rows == 1;
    layer_norm(w, b->norm_weight, b->norm_bias, s->x, s->normed, rows);
    multiply(s, &b->in, s->normed, w->d, rows, s->uz, 2 * e, 0);
    for (size_t band = 0; band < w->bands; band++)
        convolve(w, b, s->uz + band * T * 2 * e, 2 * e, conv + band * (w->taps - 1) * e, s->u + band * T * e, T);
    multiply(s, &b->x, s->u, e, rows, s->projected, w->x_pitch, 0);
    if (w->rank)
        multiply(s, &b->dt, s->projected, w->x_pitch, rows, s->steps, heads, 0);
    for (size_t row = 0; row < rows; row++) {
        float *steps = s->steps + row * e, *decay = s->decay + row * e;
        const float *dt = w->rank ? s->steps + row * heads : s->projected + row * w->x_pitch;
        for (size_t i = 0; i < heads; i += LANES) {
            vf step = softplus(load(dt + i) + load(b->dt_bias + i));
            store(steps + i, step);
            if (by_head)
                store(decay + i, exp_(step * load(b->rates + i)));
        }
    }
    for (size_t row = 0; row < rows; row++) {
        const float *projected = s->projected + row * w->x_pitch;
        spread(w, s->steps + row * e);
        if (by_head)
            spread(w, s->decay + row * e);
        scan(w, b, s->steps + row * e, by_head ? s->decay + row * e : NULL, projected + decays,
             projected + decays + w->states, s->u + row * e, s->uz + row * 2 * e + e, ssm + row / T * w->states * e,
             s->y + row * e);
    }
    multiply(s, &b->out, s->y, e, rows, s->x, w->d, 1);
}

/* Decoder of all bands: per_band values a bin, into rows of bins. */
static void decode(edgese_stream *s, int which, float *const *bins, size_t T)
{
    const edgese_weights *w = s->weights;
    const size_t hidden = padded(w->hidden), n_values = which == MASK ? 1 : 2;
    for (size_t band = 0; band < w->bands; band++) {
        const product *p = w->last[which] + band;
        const size_t width = w->starts[band + 1] - w->starts[band];
        multiply(s, w->first[which] + band, s->head + band * T * w->d, w->d, T, s->hidden, hidden, 0);
        silu_rows(s->hidden, T * hidden);
        multiply(s, p, s->hidden, hidden, T, s->answer, p->n, 0);
        for (size_t t = 0; t < T; t++)
            for (size_t value = 0; value < n_values; value++)
                for (size_t i = 0; i < width; i++)
                    bins[value][t * w->bins_pitch + w->starts[band] + i] = s->answer[t * p->n + value * width + i];
    }
}

/* Mask and rotation applied to a spectrum. */
static void apply(const edgese_weights *w, const float *mask, const float *cosine, const float *sine, float *re, float *im)
{
    const vf exponent = splat(1 / w->compression);
    for (size_t i = 0; i < w->bins; i += LANES) {
        vf x = load(re + i), y = load(im + i), c = load(cosine + i) + splat(1), d = load(sine + i);
        vf length = root(fma_(c, c, fma_(d, d, splat(1e-8f))));
        vf gain = exp_(exponent * log_(splat(2) * sigmoid(load(mask + i)))) / length;
        store(re + i, (x * c - y * d) * gain);
        store(im + i, (x * d + y * c) * gain);
    }
}

/* Perceptual contrast stretching of a spectrum. edgese/model/pcs.py */
static void stretch(const edgese_weights *w, float *re, float *im)
{
    const float scale = w->pcs_constants[0], floor = w->pcs_constants[1];
    for (size_t i = 0; i < w->bins; i += LANES) {
        vf x = load(re + i), y = load(im + i);
        vf magnitude = root(max_(fma_(x, x, y * y) * splat(scale * scale), splat(floor * floor)));
        vf gain = exp_(load(w->pcs + i) * log_(splat(1) + magnitude)) - splat(1);
        gain = splat(w->pcs_constants[2]) * gain / magnitude;
        store(re + i, x * gain), store(im + i, y * gain);
    }
}

/* T hops, no more than the stream works on at a time; returns the number of samples that were no sound. */
static size_t hops(edgese_stream *s, const float *in, float *out, size_t T)
{
    const edgese_weights *w = s->weights;
    const size_t K = w->bands, rows = K * T, overlap = w->overlap, hop = w->hop, pitch = w->bins_pitch;
    float *before = s->states + w->kept[0].place, *after = s->states + w->kept[1].place;
    size_t no_sound = 0;

    memcpy(s->wave, before, overlap * sizeof(float));
    for (size_t i = 0; i < T * hop; i++) {
        float x;
        memcpy(&x, in + i, sizeof x); /* at any address */
        if (!(x <= 1e6f && x >= -1e6f)) {
            no_sound++;
            if (!(s->options & EDGESE_PASS))
                x = x > 1e6f ? 1e6f : x < -1e6f ? -1e6f : 0;
        }
        s->wave[overlap + i] = x;
    }
    memcpy(before, s->wave + T * hop, overlap * sizeof(float));

    for (size_t t = 0; t < T; t++) {
        analyse(w, s->fft, s->wave + t * hop, s->re + t * pitch, s->im + t * pitch);
        compress(w, s->re + t * pitch, s->im + t * pitch, s->features + t * 3 * pitch);
    }
    for (size_t band = 0; band < K; band++)
        multiply(s, w->split + band, s->features + 3 * w->starts[band], 3 * pitch, T, s->x + band * T * w->d, w->d, 0);
    for (size_t i = 0; i < w->layers; i++) {
        mamba(s, w->blocks + i, s->states + w->kept[2 + 2 * i].place, s->states + w->kept[3 + 2 * i].place, T);
        if (w->fusions == w->layers || i + 1 == w->layers) {
            const fusion *mix = w->mixes + (w->fusions == w->layers ? i : 0);
            layer_norm(w, mix->norm_weight, mix->norm_bias, s->x, s->normed, rows);
            mix_bands(w, mix, s->normed, s->head, T * w->d);
            multiply(s, &mix->channels, s->head, w->d, rows, s->x, w->d, 1);
        }
    }
    layer_norm(w, w->norm_weight, w->norm_bias, s->x, s->normed, rows);
    for (int which = 0; which < N_DECODERS; which++) {
        multiply(s, &w->heads_of[which], s->normed, w->d, rows, s->head, w->d, 0);
        for (size_t i = 0; i < rows * w->d; i += LANES) {
            vf x = load(s->head + i);
            store(s->head + i, which == MASK ? sigmoid(x) : splat(2) * sigmoid(x + x) - splat(1));
        }
        decode(s, which, which == MASK ? s->bins : s->bins + 1, T);
    }

    memset(s->wave, 0, (overlap + T * hop) * sizeof(float));
    memcpy(s->wave, after, overlap * sizeof(float));
    for (size_t t = 0; t < T; t++) {
        float *re = s->re + t * pitch, *im = s->im + t * pitch;
        apply(w, s->bins[0] + t * pitch, s->bins[1] + t * pitch, s->bins[2] + t * pitch, re, im);
        if (s->options & EDGESE_PCS)
            stretch(w, re, im);
        synthesise(w, s->fft, re, im, s->wave + t * hop);
    }
    memcpy(out, s->wave, T * hop * sizeof(float));
    memcpy(after, s->wave + T * hop, overlap * sizeof(float));
    return no_sound;
}

#undef MOST_ROWS
#endif
