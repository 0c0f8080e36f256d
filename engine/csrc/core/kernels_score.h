/* kernels_score.h - bounds of quadratics by zones, compiled once for each instruction set: loops of fixed
 * lengths over blocks that compilers make vectors of. */
#include "kernels.h"

#include <string.h>

#define QUADRATIC_BLOCKS 64

static void quadratic_zones(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                            const bw_quadratic *q, int32_t most[BW_GROUPS * QUADRATIC_BLOCKS]) {
    int32_t sums[QUADRATIC_BLOCKS] = {0};
    for (uint32_t group = BW_GROUPS; group-- > 0;) {
        for (uint32_t i = 8 * group; group < q->groups && i < 8 * group + 8; i++) {
            const uint8_t *low = zone_min + q->dim[i] * zone_stride + b;
            const uint8_t *high = zone_max + q->dim[i] * zone_stride + b;
            const int32_t centre = q->centre[i], linear = q->linear[i], square = q->square[i];
            if (square <= 0) { /* falls to both sides of its best place */
                const int32_t best = q->best[i];
                for (int k = 0; k < QUADRATIC_BLOCKS; k++) {
                    int32_t x = best > low[k] ? best : low[k];
                    x = x < high[k] ? x : high[k];
                    sums[k] += (linear + square * (x - centre)) * (x - centre);
                }
            } else {
                for (int k = 0; k < QUADRATIC_BLOCKS; k++) {
                    int32_t least = low[k] - centre, last = high[k] - centre;
                    int32_t one = (linear + square * least) * least;
                    int32_t other = (linear + square * last) * last;
                    sums[k] += one > other ? one : other;
                }
            }
        }
        memcpy(most + group * QUADRATIC_BLOCKS, sums, sizeof sums);
    }
}
