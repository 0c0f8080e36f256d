/* kernels_generic.c - the kernels in plain C: what runs where there is nothing better, and the oracle of the
 * others. */
#include "kernels.h"

#include <string.h>

#define PLANE_BYTES 16
#include "kernels_planes.h"

const uint8_t bw_plane_class_ranges[BW_PLANE_CLASSES] = {0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 32};

static bool box(const uint8_t *block, size_t stride, const bw_ranges *ranges, const uint64_t wanted[4],
                uint64_t mask[4]) {
    uint8_t inside[BW_BLOCK_ROWS];
    memset(inside, 1, sizeof inside);
    for (uint32_t i = 0; i < ranges->count; i++) {
        const uint8_t *column = block + ranges->dim[i] * stride;
        uint8_t lo = ranges->lo[i], hi = ranges->hi[i];
        for (int r = 0; r < BW_BLOCK_ROWS; r++) {
            inside[r] &= (uint8_t)(lo <= column[r]) & (uint8_t)(column[r] <= hi);
        }
    }
    for (int word = 0; word < 4; word++) {
        mask[word] = 0;
        for (int bit = 0; bit < 64; bit++) {
            mask[word] |= (uint64_t)inside[64 * word + bit] << bit;
        }
        mask[word] &= wanted[word];
    }
    return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
}

void bw_gather_generic(const uint8_t *from, size_t stride, uint32_t dims, uint64_t rows, uint8_t *to) {
    uint8_t places[64];
    uint32_t count = 0;
    for (; rows; rows &= rows - 1) {
        places[count++] = (uint8_t)__builtin_ctzll(rows);
    }
    for (; dims; dims &= dims - 1) {
        uint32_t d = (uint32_t)__builtin_ctz(dims);
        for (uint32_t i = 0; i < count; i++) {
            to[d * BW_GATHER_STRIDE + i] = from[d * stride + places[i]];
        }
    }
}

static void zones(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                  const bw_ranges *ranges, uint64_t *overlaps, uint64_t *contained) {
    uint8_t some[64], all[64];
    memset(some, 1, sizeof some);
    memset(all, 1, sizeof all);
    for (uint32_t i = 0; i < ranges->count; i++) {
        const uint8_t *low = zone_min + ranges->dim[i] * zone_stride + b;
        const uint8_t *high = zone_max + ranges->dim[i] * zone_stride + b;
        uint8_t lo = ranges->lo[i], hi = ranges->hi[i];
        for (int k = 0; k < 64; k++) {
            some[k] &= (uint8_t)(low[k] <= hi) & (uint8_t)(high[k] >= lo);
            all[k] &= (uint8_t)(low[k] >= lo) & (uint8_t)(high[k] <= hi);
        }
    }
    *overlaps = *contained = 0;
    for (int k = 0; k < 64; k++) {
        *overlaps |= (uint64_t)some[k] << k;
        *contained |= (uint64_t)(some[k] & all[k]) << k;
    }
}

static void distances(const uint8_t *points, size_t stride, const uint8_t query[BW_DIMS],
                      uint32_t distances[64]) {
    memset(distances, 0, 64 * sizeof *distances);
    for (int d = 0; d < BW_DIMS; d++) {
        const uint8_t *column = points + d * stride;
        for (int i = 0; i < 64; i++) {
            int32_t difference = (int32_t)column[i] - query[d];
            distances[i] += (uint32_t)(difference * difference);
        }
    }
}

static uint64_t near(const uint8_t *points, size_t stride, const uint8_t query[BW_DIMS],
                     const uint8_t order[BW_DIMS], uint32_t limit, uint32_t out[64]) {
    (void)order;
    uint64_t within = 0;
    distances(points, stride, query, out);
    for (int i = 0; i < 64; i++) {
        within |= (uint64_t)(out[i] <= limit) << i;
    }
    return within;
}

static void zone_distances(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                           const uint8_t query[BW_DIMS], uint32_t distances[64]) {
    memset(distances, 0, 64 * sizeof *distances);
    for (int d = 0; d < BW_DIMS; d++) {
        const uint8_t *low = zone_min + d * zone_stride + b;
        const uint8_t *high = zone_max + d * zone_stride + b;
        for (int k = 0; k < 64; k++) {
            int32_t under = low[k] - query[d], over = query[d] - high[k];
            int32_t outside = under > over ? under : over;
            outside = outside > 0 ? outside : 0;
            distances[k] += (uint32_t)(outside * outside);
        }
    }
}

void bw_scores_generic(const uint8_t *block, size_t stride, const int64_t *table, int64_t constant,
                       int64_t scores[256]) {
    for (int r = 0; r < BW_BLOCK_ROWS; r++) {
        scores[r] = constant;
    }
    for (int d = 0; d < BW_DIMS; d++) {
        const uint8_t *column = block + d * stride;
        const int64_t *entries = table + d * 256;
        for (int r = 0; r < BW_BLOCK_ROWS; r++) {
            scores[r] += entries[column[r]];
        }
    }
}

const bw_kernels *bw_kernels_generic(void) {
    static const bw_kernels table = {
        .name = "generic",
        .box = box,
        .planes = planes,
        .gather = bw_gather_generic,
        .zones = zones,
        .distances = distances,
        .near = near,
        .zone_distances = zone_distances,
        .scores = bw_scores_generic,
        .crc32c = bw_crc32c,
    };
    return &table;
}
