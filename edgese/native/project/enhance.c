/* enhance IN.wav OUT.wav: a recording enhanced, aligned with the input and as long, whole band.
 *
 * WAV files of 16 kHz and more, 16 bit or float32, any number of channels, each a stream of its own. Memory does not grow
 * with the recording.
 */
#include "edgese_live.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 4096, MOST_CHANNELS = 64, PCM = 1, FLOAT = 3, EXTENSIBLE = 0xfffe };

typedef struct {
    unsigned kind, channels, rate, bits;
    unsigned long frames;
} format;

static unsigned long number(const unsigned char *bytes, int n)
{
    unsigned long value = 0;
    while (n--)
        value = value << 8 | bytes[n];
    return value;
}

static void put(unsigned char *bytes, unsigned long value, int n)
{
    for (int i = 0; i < n; i++)
        bytes[i] = (unsigned char)(value >> 8 * i & 0xff);
}

/* Reads up to the first sample; NULL, or what is wrong. */
static const char *read_header(FILE *file, format *found)
{
    unsigned char bytes[40];
    memset(found, 0, sizeof *found);
    if (fread(bytes, 1, 12, file) != 12 || memcmp(bytes, "RIFF", 4) || memcmp(bytes + 8, "WAVE", 4))
        return "not a WAV file";
    while (fread(bytes, 1, 8, file) == 8) {
        unsigned long size = number(bytes + 4, 4), skip = size + (size & 1);
        if (!memcmp(bytes, "fmt ", 4)) {
            size_t take = size < sizeof bytes ? size : sizeof bytes;
            if (size < 16 || fread(bytes, 1, take, file) != take)
                return "its format chunk is cut";
            found->kind = (unsigned)number(bytes, 2);
            found->channels = (unsigned)number(bytes + 2, 2);
            found->rate = (unsigned)number(bytes + 4, 4);
            found->bits = (unsigned)number(bytes + 14, 2);
            if (found->kind == EXTENSIBLE && take >= 26)
                found->kind = (unsigned)number(bytes + 24, 2);
            skip -= (unsigned long)take;
        } else if (!memcmp(bytes, "data", 4)) {
            if (!found->channels || found->channels > MOST_CHANNELS)
                return "its number of channels is none that can be";
            if (!(found->kind == PCM && found->bits == 16) && !(found->kind == FLOAT && found->bits == 32))
                return "wanted 16-bit or float32 samples";
            found->frames = size / (found->channels * found->bits / 8);
            return NULL;
        }
        for (; skip; skip--)
            if (fgetc(file) == EOF)
                return "it ends before its sound";
    }
    return "it holds no sound";
}

static int write_header(FILE *file, const format *f)
{
    unsigned char bytes[44] = {0};
    unsigned frame = f->channels * f->bits / 8;
    memcpy(bytes, "RIFF", 4);
    put(bytes + 4, 36 + f->frames * frame, 4);
    memcpy(bytes + 8, "WAVEfmt ", 8);
    put(bytes + 16, 16, 4);
    put(bytes + 20, f->kind, 2);
    put(bytes + 22, f->channels, 2);
    put(bytes + 24, f->rate, 4);
    put(bytes + 28, (unsigned long)f->rate * frame, 4);
    put(bytes + 32, frame, 2);
    put(bytes + 34, f->bits, 2);
    memcpy(bytes + 36, "data", 4);
    put(bytes + 40, f->frames * frame, 4);
    return fwrite(bytes, 1, sizeof bytes, file) == sizeof bytes;
}

static float decoded(const unsigned char *bytes, const format *f)
{
    float value;
    if (f->kind == PCM)
        return (float)(int16_t)number(bytes, 2) / 32768.0f;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static void encode(unsigned char *bytes, float value, const format *f)
{
    if (f->kind == PCM) {
        float scaled = value * 32768.0f;
        scaled = scaled > 32767.0f ? 32767.0f : scaled < -32768.0f ? -32768.0f : scaled;
        put(bytes, (unsigned long)(uint16_t)(int16_t)(scaled < 0 ? scaled - 0.5f : scaled + 0.5f), 2);
    } else
        memcpy(bytes, &value, sizeof value);
}

/* NULL, or what went wrong. */
static const char *enhance(const edgese_weights *weights, FILE *in, FILE *out, const format *f, char *error)
{
    const size_t width = f->bits / 8, frame = f->channels * width;
    edgese_live *live = edgese_live_start(weights, f->rate, f->channels, 0, error);
    float *sound = malloc(BLOCK * f->channels * sizeof *sound), *channels[MOST_CHANNELS];
    unsigned char *bytes = malloc(BLOCK * frame);
    unsigned long left = f->frames, late = live ? edgese_live_latency(live) : 0, unwritten = f->frames;
    const char *wrong = !live ? error : !sound || !bytes ? "no memory" : NULL;
    for (unsigned c = 0; c < f->channels; c++)
        channels[c] = sound + c * BLOCK;
    if (!wrong && !write_header(out, f))
        wrong = "cannot be written";
    while (!wrong && unwritten) { /* behind the end of the input comes silence, which drives out the last samples */
        size_t now = left < BLOCK ? left : BLOCK, skip = late < BLOCK ? late : BLOCK;
        size_t n = BLOCK - skip < unwritten ? BLOCK - skip : unwritten;
        memset(bytes, 0, BLOCK * frame);
        if (now && fread(bytes, frame, now, in) != now) {
            wrong = "the input ends before the length in its header";
            break;
        }
        for (size_t i = 0; i < BLOCK * f->channels; i++)
            channels[i % f->channels][i / f->channels] = decoded(bytes + i * width, f);
        edgese_live_process(live, (const float *const *)channels, channels, BLOCK, EDGESE_NO_LIMIT, 1);
        for (size_t i = 0; i < n * f->channels; i++)
            encode(bytes + i * width, channels[i % f->channels][skip + i / f->channels], f);
        if (fwrite(bytes, frame, n, out) != n)
            wrong = "cannot be written";
        left -= (unsigned long)now;
        late -= (unsigned long)skip;
        unwritten -= (unsigned long)n;
    }
    edgese_live_stop(live);
    free(sound);
    free(bytes);
    return wrong;
}

int main(int argc, char **argv)
{
    char error[EDGESE_ERROR_SIZE];
    const char *path = argc > 3 ? argv[3] : "model.edgese", *wrong, *about;
    edgese_weights *weights;
    FILE *in, *out;
    format f;
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: %s IN.wav OUT.wav [model.edgese]\n", argv[0]);
        return 2;
    }
    weights = edgese_open(path, error);
    if (!weights) {
        fprintf(stderr, "error: %s\n", error);
        return 1;
    }
    about = argv[1];
    in = fopen(argv[1], "rb");
    wrong = in ? read_header(in, &f) : "cannot be read";
    if (!wrong) {
        out = fopen(argv[2], "wb");
        about = out ? argv[1] : argv[2];
        wrong = out ? enhance(weights, in, out, &f, error) : "cannot be written";
        if (out && fclose(out) && !wrong)
            wrong = "cannot be written", about = argv[2];
        if (out && wrong)
            remove(argv[2]);
    }
    if (in)
        fclose(in);
    edgese_close(weights);
    if (wrong) {
        fprintf(stderr, "error: %s: %s\n", about, wrong);
        return 1;
    }
    printf("%s -> %s: %.1f s\n", argv[1], argv[2], (double)f.frames / f.rate);
    return 0;
}
