/* replay.c - a main for fuzz targets where there is no libFuzzer:
 *   fuzz_x FILE ...           runs the target on each file
 *   fuzz_x --mutate N SEED    runs it on the target's seeds and on N random mutations of them, the same on
 * every machine A target that does not crash passes. */
#include "base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CAPACITY ((size_t)1 << 20)
#define SEEDS_MAX 256

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Writes seed `number` into the buffer; its size, or 0 when there is no such seed. */
size_t fuzz_seed(uint8_t *buffer, size_t capacity, unsigned number);

/* The target gets a copy of exactly its size, so that a read past its end is seen. */
static void run(const uint8_t *data, size_t size) {
    uint8_t *exact = malloc(size > 0 ? size : 1);
    if (exact == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    memcpy(exact, data, size);
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
}

static int run_file(const char *path, uint8_t *buffer) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        fprintf(stderr, "cannot read %s\n", path);
        return 1;
    }
    size_t size = fread(buffer, 1, CAPACITY, file);
    fclose(file);
    run(buffer, size);
    printf("%s: %zu bytes\n", path, size);
    return 0;
}

static size_t mutate(uint8_t *data, size_t size, bw_random *random) {
    static const uint64_t numbers[] = {0,
                                       1,
                                       2,
                                       3,
                                       4,
                                       31,
                                       32,
                                       33,
                                       255,
                                       256,
                                       257,
                                       4095,
                                       4096,
                                       4097,
                                       65535,
                                       65536,
                                       INT32_MAX,
                                       UINT32_MAX,
                                       (uint64_t)INT32_MAX + 1,
                                       (uint64_t)UINT32_MAX + 1,
                                       INT64_MAX,
                                       UINT64_MAX,
                                       UINT64_MAX - 4095,
                                       (uint64_t)INT64_MAX + 1};
    for (uint64_t steps = 1 + bw_random_below(random, 4); steps > 0 && size > 0; steps--) {
        /* Headers come first: half of the changes go into the first 512 bytes. */
        size_t reach = size > 512 && bw_random_below(random, 2) == 0 ? 512 : size;
        size_t at = bw_random_below(random, reach), room = size - at;
        switch (bw_random_below(random, 8)) {
        case 0:
            data[at] ^= (uint8_t)(1u << bw_random_below(random, 8));
            break;
        case 1:
            data[at] = (uint8_t)bw_random_next(random);
            break;
        case 2: { /* a number of 4 or 8 bytes, mostly where numbers stand */
            size_t bytes = bw_random_below(random, 2) ? 4 : 8;
            at -= bw_random_below(random, 4) ? at % 4 : 0;
            uint64_t number = numbers[bw_random_below(random, sizeof numbers / sizeof *numbers)];
            memcpy(data + at, &number, bytes < size - at ? bytes : size - at);
            break;
        }
        case 3: { /* a number a little larger or smaller than it was */
            uint32_t number;
            at -= at % 4;
            if (size - at >= sizeof number) {
                memcpy(&number, data + at, sizeof number);
                number += (uint32_t)bw_random_below(random, 9) - 4;
                memcpy(data + at, &number, sizeof number);
            }
            break;
        }
        case 4: /* cut */
            size = at;
            break;
        case 5: { /* copy a part over another */
            size_t from = bw_random_below(random, size), most = size - (from > at ? from : at);
            memmove(data + at, data + from, bw_random_below(random, (most < 64 ? most : 64) + 1));
            break;
        }
        case 6: { /* insert a copy */
            size_t bytes = bw_random_below(random, 33);
            if (bytes <= room && size + bytes <= CAPACITY) {
                memmove(data + at + bytes, data + at, room);
                size += bytes;
            }
            break;
        }
        default: { /* remove */
            size_t bytes = bw_random_below(random, (room < 32 ? room : 32) + 1);
            memmove(data + at, data + at + bytes, room - bytes);
            size -= bytes;
            break;
        }
        }
    }
    return size;
}

static int run_mutations(unsigned long n, uint64_t seed, uint8_t *buffer) {
    static uint8_t *seeds[SEEDS_MAX];
    static size_t sizes[SEEDS_MAX];
    unsigned count = 0;
    for (; count < SEEDS_MAX && (sizes[count] = fuzz_seed(buffer, CAPACITY, count)) > 0; count++) {
        seeds[count] = malloc(sizes[count]);
        if (seeds[count] == NULL) {
            fprintf(stderr, "out of memory\n");
            return 1;
        }
        memcpy(seeds[count], buffer, sizes[count]);
        run(buffer, sizes[count]);
    }
    if (count == 0) {
        fprintf(stderr, "the target has no seeds\n");
        return 1;
    }
    bw_random random = {seed};
    for (unsigned long i = 0; i < n; i++) {
        unsigned chosen = (unsigned)bw_random_below(&random, count);
        memcpy(buffer, seeds[chosen], sizes[chosen]);
        size_t size = mutate(buffer, sizes[chosen], &random);
        run(buffer, size);
    }
    for (unsigned i = 0; i < count; i++) {
        free(seeds[i]);
    }
    printf("%u seeds and %lu mutations passed\n", count, n);
    return 0;
}

int main(int argc, char **argv) {
    uint8_t *buffer = malloc(CAPACITY);
    int failed = buffer == NULL;
    if (!failed && argc == 4 && strcmp(argv[1], "--mutate") == 0) {
        failed = run_mutations(strtoul(argv[2], NULL, 10), strtoull(argv[3], NULL, 10), buffer);
    } else {
        for (int i = 1; i < argc && !failed; i++) {
            failed = run_file(argv[i], buffer);
        }
    }
    free(buffer);
    return failed;
}
