/* Every table of kernels that this computer can run, against definitions written out row by row. */
#include "kernels.h"
#include "test.h"

enum { UNIFORM, NARROW, TWO_VALUES, ALL_ZERO, ALL_255, EXTREMES, KINDS };

static uint8_t value_of(bw_random *random, int kind) {
    switch (kind) {
    case UNIFORM:
        return (uint8_t)bw_random_next(random);
    case NARROW:
        return (uint8_t)(100 + bw_random_below(random, 8));
    case TWO_VALUES:
        return bw_random_below(random, 2) ? 7 : 200;
    case ALL_ZERO:
        return 0;
    case ALL_255:
        return 255;
    default:
        return (uint8_t)(bw_random_below(random, 4) - 2); /* 254, 255, 0, 1 */
    }
}

/* `count` different dimensions; bounds near the values of the kind as often as anywhere. */
static bw_ranges random_ranges(bw_random *random, uint32_t count, int kind) {
    bw_ranges ranges = {.count = count};
    uint8_t dims[BW_DIMS];
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        uint32_t other = (uint32_t)bw_random_below(random, d + 1);
        dims[d] = dims[other];
        dims[other] = (uint8_t)d;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint8_t a = value_of(random, bw_random_below(random, 2) ? kind : UNIFORM);
        uint8_t b = value_of(random, bw_random_below(random, 2) ? kind : UNIFORM);
        ranges.dim[i] = dims[i];
        ranges.lo[i] = a < b ? a : b;
        ranges.hi[i] = a < b ? b : a;
        switch (
            bw_random_below(random, count < 4 ? 8 : 3)) { /* many ranges must be wide, or no row is inside */
        case 0:
            ranges.hi[i] = 255;
            break;
        case 1:
            ranges.lo[i] = 0;
            break;
        case 2:
            ranges.lo[i] = 0;
            ranges.hi[i] = 255;
            break;
        case 3:
            ranges.lo[i] = ranges.hi[i];
            break;
        default:
            break;
        }
    }
    return ranges;
}

static bool bit(const uint64_t *mask, int place) {
    return mask[place / 64] >> place % 64 & 1;
}

static void test_box(const bw_kernels *kernels) {
    bw_random random = {1};
    unsigned hits = 0, rows = 0, wrong = 0;
    for (int round = 0; round < 3000; round++) {
        int kind = round % KINDS;
        size_t tiles = 1 + bw_random_below(&random, 3), stride = tiles * BW_BLOCK_ROWS;
        uint8_t *tile = bw_alloc_aligned(stride * BW_DIMS);
        for (size_t i = 0; i < stride * BW_DIMS; i++) {
            tile[i] = value_of(&random, kind);
        }
        const uint8_t *block = tile + bw_random_below(&random, tiles) * BW_BLOCK_ROWS;
        bw_ranges ranges = random_ranges(&random, (uint32_t)round / KINDS % (BW_DIMS + 1), kind);
        uint64_t mask[4] = {1, 2, 3, 4};
        bool any = kernels->box(block, stride, &ranges, mask), expected_any = false;
        for (int r = 0; r < BW_BLOCK_ROWS; r++) {
            bool inside = true;
            for (uint32_t i = 0; i < ranges.count; i++) {
                uint8_t x = block[ranges.dim[i] * stride + (size_t)r];
                inside = inside && ranges.lo[i] <= x && x <= ranges.hi[i];
            }
            wrong += bit(mask, r) != inside;
            expected_any = expected_any || inside;
            hits += inside;
            rows++;
        }
        wrong += any != expected_any;
        bw_free(tile);
    }
    CHECK_EQUAL(wrong, 0);
    CHECK(hits > rows / 20 && hits < rows - rows / 20); /* the cases must be of both kinds */
}

static void test_zones(const bw_kernels *kernels) {
    bw_random random = {2};
    unsigned overlapping = 0, inside = 0, wrong = 0;
    for (int round = 0; round < 2000; round++) {
        int kind = round % KINDS;
        size_t groups = 1 + bw_random_below(&random, 3), stride = groups * 64;
        uint8_t *low = bw_alloc_aligned(stride * BW_DIMS), *high = bw_alloc_aligned(stride * BW_DIMS);
        for (size_t i = 0; i < stride * BW_DIMS; i++) {
            uint8_t a = value_of(&random, kind),
                    b = bw_random_below(&random, 4) ? a : value_of(&random, kind);
            low[i] = a < b ? a : b;
            high[i] = a < b ? b : a;
        }
        size_t b = bw_random_below(&random, groups) * 64;
        bw_ranges ranges = random_ranges(&random, (uint32_t)round / KINDS % (BW_DIMS + 1), kind);
        uint64_t overlaps = 0, contained = 0;
        kernels->zones(low, high, stride, b, &ranges, &overlaps, &contained);
        for (int k = 0; k < 64; k++) {
            bool some = true, all = true;
            for (uint32_t i = 0; i < ranges.count; i++) {
                size_t at = ranges.dim[i] * stride + b + (size_t)k;
                some = some && low[at] <= ranges.hi[i] && high[at] >= ranges.lo[i];
                all = all && low[at] >= ranges.lo[i] && high[at] <= ranges.hi[i];
            }
            wrong += bit(&overlaps, k) != some;
            wrong += bit(&contained, k) != all;
            overlapping += some;
            inside += all;
        }
        bw_free(low);
        bw_free(high);
    }
    CHECK_EQUAL(wrong, 0);
    CHECK(inside > 1000 && overlapping > inside + 1000 && overlapping < 2000 * 64 - 1000);
}

/* Places past the last block, minimum 255 and maximum 0, must not upset a kernel. */
static void test_zone_padding(const bw_kernels *kernels) {
    uint8_t *low = bw_alloc_aligned(64 * BW_DIMS), *high = bw_alloc_aligned(64 * BW_DIMS);
    memset(low, 255, 64 * BW_DIMS);
    memset(high, 0, 64 * BW_DIMS);
    for (int d = 0; d < BW_DIMS; d++) {
        low[d * 64] = high[d * 64] = 9;
    }
    bw_ranges ranges = {.count = 2, .dim = {3, 31}, .lo = {9, 1}, .hi = {9, 254}};
    uint64_t overlaps, contained;
    kernels->zones(low, high, 64, 0, &ranges, &overlaps, &contained);
    CHECK_EQUAL(overlaps, 1);
    CHECK_EQUAL(contained, 1);
    uint8_t query[BW_DIMS] = {0};
    uint32_t bounds[64];
    kernels->zone_distances(low, high, 64, 0, query, bounds);
    CHECK_EQUAL(bounds[0], 32 * 81);
    bw_free(low);
    bw_free(high);
}

static void test_distances(const bw_kernels *kernels) {
    bw_random random = {3};
    unsigned wrong = 0;
    for (int round = 0; round < 600; round++) {
        int kind = round % KINDS;
        size_t tiles = 1 + bw_random_below(&random, 3), stride = tiles * BW_BLOCK_ROWS;
        uint8_t *tile = bw_alloc_aligned(stride * BW_DIMS), query[BW_DIMS];
        for (size_t i = 0; i < stride * BW_DIMS; i++) {
            tile[i] = value_of(&random, kind);
        }
        for (int d = 0; d < BW_DIMS; d++) { /* every third round: as far away as can be */
            query[d] = round % 3 == 0 ? (uint8_t)(kind == ALL_255 ? 0 : 255) : value_of(&random, UNIFORM);
        }
        const uint8_t *block = tile + bw_random_below(&random, tiles) * BW_BLOCK_ROWS;
        uint32_t distances[BW_BLOCK_ROWS];
        kernels->distances(block, stride, query, distances);
        for (int r = 0; r < BW_BLOCK_ROWS; r++) {
            uint32_t sum = 0;
            for (size_t d = 0; d < BW_DIMS; d++) {
                int difference = (int)block[d * stride + (size_t)r] - query[d];
                sum += (uint32_t)(difference * difference);
            }
            wrong += sum != distances[r];
        }
        if (round == 3 || round == 9) { /* ALL_ZERO from 255; the largest distance there is */
            CHECK_EQUAL(distances[0], 32 * 255 * 255);
        }
        bw_free(tile);
    }
    CHECK_EQUAL(wrong, 0);
}

static void test_zone_distances(const bw_kernels *kernels) {
    bw_random random = {4};
    unsigned wrong = 0;
    for (int round = 0; round < 600; round++) {
        int kind = round % KINDS;
        size_t groups = 1 + bw_random_below(&random, 3), stride = groups * 64;
        uint8_t *low = bw_alloc_aligned(stride * BW_DIMS), *high = bw_alloc_aligned(stride * BW_DIMS);
        uint8_t query[BW_DIMS];
        for (size_t i = 0; i < stride * BW_DIMS; i++) {
            uint8_t a = value_of(&random, kind), b = value_of(&random, kind);
            low[i] = a < b ? a : b;
            high[i] = a < b ? b : a;
        }
        for (int d = 0; d < BW_DIMS; d++) {
            query[d] = value_of(&random, round % 2 ? UNIFORM : (int)bw_random_below(&random, KINDS));
        }
        size_t b = bw_random_below(&random, groups) * 64;
        uint32_t bounds[64];
        kernels->zone_distances(low, high, stride, b, query, bounds);
        for (int k = 0; k < 64; k++) {
            uint32_t sum = 0;
            for (size_t d = 0; d < BW_DIMS; d++) {
                int l = low[d * stride + b + (size_t)k], h = high[d * stride + b + (size_t)k], x = query[d];
                int outside = x < l ? l - x : x > h ? x - h : 0;
                sum += (uint32_t)(outside * outside);
            }
            wrong += sum != bounds[k];
        }
        bw_free(low);
        bw_free(high);
    }
    CHECK_EQUAL(wrong, 0);
}

static void test_scores(const bw_kernels *kernels) {
    bw_random random = {5};
    unsigned wrong = 0;
    int64_t *table = test_alloc(BW_DIMS * 256 * sizeof *table);
    for (int round = 0; round < 200; round++) {
        size_t stride = (1 + bw_random_below(&random, 2)) * BW_BLOCK_ROWS;
        uint8_t *block = bw_alloc_aligned(stride * BW_DIMS);
        for (size_t i = 0; i < stride * BW_DIMS; i++) {
            block[i] = value_of(&random, round % KINDS);
        }
        for (int i = 0; i < BW_DIMS * 256; i++) { /* up to 2^46 each way, as models may have */
            table[i] = (int64_t)bw_random_below(&random, (uint64_t)1 << 47) - ((int64_t)1 << 46);
        }
        int64_t constant = (int64_t)bw_random_below(&random, (uint64_t)1 << 52) - ((int64_t)1 << 51);
        int64_t scores[BW_BLOCK_ROWS];
        kernels->scores(block, stride, table, constant, scores);
        for (int r = 0; r < BW_BLOCK_ROWS; r++) {
            int64_t sum = constant;
            for (size_t d = 0; d < BW_DIMS; d++) {
                sum += table[d * 256 + block[d * stride + (size_t)r]];
            }
            wrong += sum != scores[r];
        }
        bw_free(block);
    }
    free(table);
    CHECK_EQUAL(wrong, 0);
}

static void test_crc32c(const bw_kernels *kernels) {
    CHECK_EQUAL(kernels->crc32c(0, "123456789", 9), 0xE3069283);
    CHECK_EQUAL(kernels->crc32c(0, "", 0), 0);
    bw_random random = {6};
    size_t most = 80000; /* three stretches of the fastest form, and a rest */
    uint8_t *data = test_alloc(most);
    for (size_t i = 0; i < most; i++) {
        data[i] = (uint8_t)bw_random_next(&random);
    }
    unsigned wrong = 0;
    for (int round = 0; round < 300; round++) {
        size_t first = bw_random_below(&random, 20);
        size_t bytes = bw_random_below(&random, round % 10 ? 300 : most - first);
        if (round < 8) { /* around the multiples of 3 * 8192 */
            bytes = (size_t)(1 + round / 3) * 3 * 8192 - 1 + (size_t)(round % 3);
        }
        size_t part = bw_random_below(&random, bytes + 1);
        uint32_t whole = kernels->crc32c(0, data + first, bytes);
        wrong += whole != bw_crc32c(0, data + first, bytes);
        wrong += whole !=
                 kernels->crc32c(kernels->crc32c(0, data + first, part), data + first + part, bytes - part);
    }
    free(data);
    CHECK_EQUAL(wrong, 0);
}

static void test_selection(void) {
    bw_error error;
    CHECK_STATUS(bw_isa_select("mmx", &error), BW_INVALID);
    CHECK_MESSAGE("mmx");
    CHECK_STATUS(bw_isa_select("generic", &error), BW_OK);
    CHECK(strcmp(bw_isa(), "generic") == 0);
    CHECK_STATUS(bw_isa_select("", &error), BW_OK);
    const char *best = bw_isa();
    CHECK_STATUS(bw_isa_select("generic", &error), BW_OK);
    CHECK_STATUS(bw_isa_select(NULL, &error), BW_OK);
    CHECK(strcmp(bw_isa(), best) == 0);
    CHECK(bw_isa_select("avx2", NULL) == (bw_cpu_has_avx2() && bw_kernels_avx2() ? BW_OK : BW_INVALID));
    CHECK(bw_isa_select("avx512", NULL) == (bw_cpu_has_avx512() && bw_kernels_avx512() ? BW_OK : BW_INVALID));
    CHECK(bw_isa_select("neon", NULL) == (bw_cpu_has_neon() && bw_kernels_neon() ? BW_OK : BW_INVALID));
}

int main(void) {
    static const char *const names[] = {"generic", "avx2", "avx512", "neon"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (bw_isa_select(names[i], NULL) != BW_OK) {
            continue;
        }
        const bw_kernels *kernels = bw_kernels_get();
        printf("%s\n", kernels->name);
        CHECK(strcmp(kernels->name, names[i]) == 0);
        test_box(kernels);
        test_zones(kernels);
        test_zone_padding(kernels);
        test_distances(kernels);
        test_zone_distances(kernels);
        test_scores(kernels);
        test_crc32c(kernels);
    }
    test_selection();
    return test_finish();
}
