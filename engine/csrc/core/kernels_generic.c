/* kernels_generic.c - the kernels in plain C: what runs where there is nothing better, and the oracle of the
 * others. */
#include "kernels.h"

#include <string.h>

#define PLANE_BYTES 16
#include "kernels_learn.h"
#include "kernels_planes.h"
#include "kernels_score.h"

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

static uint64_t quadratic(const uint8_t *points, size_t stride, const bw_quadratic *q,
                          const int32_t least[BW_GROUPS], int32_t sums[64]) {
    memset(sums, 0, 64 * sizeof *sums);
    uint64_t reached = 0;
    for (uint32_t group = 0; group < q->groups; group++) {
        for (uint32_t i = 8 * group; i < 8 * group + 8; i++) {
            const uint8_t *column = points + q->dim[i] * stride;
            for (int k = 0; k < 64; k++) {
                int32_t y = column[k] - q->centre[i];
                sums[k] += (q->linear[i] + q->square[i] * y) * y;
            }
        }
        reached = 0;
        for (int k = 0; k < 64; k++) {
            reached |= (uint64_t)(sums[k] >= least[group]) << k;
        }
        if (!reached) {
            break;
        }
    }
    return reached;
}

static int32_t fine(const uint8_t code[BW_FINE_DIMS], const bw_fine_quadratic *q) {
    int32_t sum = 0;
    for (int d = 0; d < BW_FINE_DIMS; d++) {
        int32_t y = code[d] - q->centre[d];
        sum += (q->linear[d] + q->square[d] * y) * y;
    }
    return sum;
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
        .quadratic = quadratic,
        .quadratic_zones = quadratic_zones,
        .fine = fine,
        .logistics = logistics,
        .gradients = gradients,
        .hessians = hessians,
        .values = values,
        .whole_values = whole_values,
        .crc32c = bw_crc32c,
    };
    return &table;
}
