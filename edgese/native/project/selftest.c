/* selftest [model.edgese [selftest.bin]]: output for a known sound against PyTorch's, hop by hop and in blocks, in every
 * instruction set of this machine; and the time of a hop. Exit code 0 where all agree.
 *
 * selftest.bin: the number of samples (32 bits), the least SNR in dB (float32), the input, PyTorch's output.
 */
#include "edgese.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double snr_db(const float *wanted, const float *found, size_t n)
{
    double signal = 0, noise = 0;
    for (size_t i = 0; i < n; i++) {
        double apart = (double)wanted[i] - found[i];
        signal += (double)wanted[i] * wanted[i];
        noise += apart * apart;
    }
    return noise > 0 || noise != noise ? 10 * log10(signal / noise) : 999;
}

static int test(edgese_weights *weights, size_t block, const float *in, const float *wanted, float *out, size_t n,
                double least_db)
{
    char error[EDGESE_ERROR_SIZE];
    const size_t hops = n / edgese_hop(weights);
    edgese_stream *stream = edgese_start(weights, block, 0, error);
    double ratio_db, best = 1e9;
    if (!stream) {
        fprintf(stderr, "error: %s\n", error);
        return 1;
    }
    for (int round = 0; round < 5; round++) {
        clock_t begin;
        edgese_reset(stream);
        begin = clock();
        for (size_t hop = 0; hop < hops; hop += block) {
            size_t now = hops - hop < block ? hops - hop : block, at = hop * edgese_hop(weights);
            edgese_process(stream, in + at, out + at, now);
        }
        best = fmin(best, (double)(clock() - begin) / CLOCKS_PER_SEC);
    }
    edgese_stop(stream);
    ratio_db = snr_db(wanted, out, n);
    printf("%-8s block %-2u %6.1f dB (wanted %.0f), %.3f ms a hop of %.0f ms: %s\n", edgese_instructions(weights),
           (unsigned)block, ratio_db, least_db, 1e3 * best / (double)hops,
           1e3 * (double)edgese_hop(weights) / (double)edgese_sample_rate(weights),
           ratio_db >= least_db ? "passed" : "FAILED");
    return !(ratio_db >= least_db);
}

int main(int argc, char **argv)
{
    static const char *const sets[] = {"sse2", "avx2", "avx512", "neon", "wasm", "generic"};
    const char *path = argc > 2 ? argv[2] : "selftest.bin";
    char error[EDGESE_ERROR_SIZE];
    edgese_weights *weights = edgese_open(argc > 1 ? argv[1] : "model.edgese", error);
    FILE *file = fopen(path, "rb");
    uint32_t n = 0;
    float least_db = 0, *sound;
    int failed = 0, tried = 0;
    if (!weights) {
        fprintf(stderr, "error: %s\n", error);
        return 1;
    }
    if (!file || fread(&n, sizeof n, 1, file) != 1 || fread(&least_db, sizeof least_db, 1, file) != 1 || n > 1u << 24 ||
        !n || n % edgese_hop(weights) || !(sound = calloc(3 * (size_t)n, sizeof *sound)) ||
        fread(sound, sizeof *sound, 2 * (size_t)n, file) != 2 * (size_t)n) {
        fprintf(stderr, "error: %s: cannot be read, or is cut\n", path);
        return 1;
    }
    fclose(file);
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (!edgese_use(weights, sets[i]))
            for (size_t block = 1; block <= 8; block += 7, tried++)
                failed += test(weights, block, sound, sound + n, sound + 2 * (size_t)n, n, least_db);
    printf("%u bytes of weights; %s\n", (unsigned)edgese_weights_bytes(weights), edgese_metadata(weights));
    free(sound);
    edgese_close(weights);
    return failed || !tried;
}
