/* kernels_neon.c - the kernels with NEON, 16 bytes a register, for 64-bit ARM, where it is part of the
 * architecture. */
#include "kernels.h"

#if defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#include <string.h>

#define PLANE_BYTES 16
#include "kernels_learn.h"
#include "kernels_planes.h"
#include "kernels_score.h"

#if defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

/* Bytes that are 0 or 255 in 64 places to 64 bits: every byte keeps the bit of its place among eight, and
 * three rounds of adding neighbours gather eight bytes into one. */
static inline uint64_t bits(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
    static const uint8_t places[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t place = vld1q_u8(places);
    uint8x16_t ab = vpaddq_u8(vandq_u8(a, place), vandq_u8(b, place));
    uint8x16_t cd = vpaddq_u8(vandq_u8(c, place), vandq_u8(d, place));
    uint8x16_t all = vpaddq_u8(ab, cd);
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(all, all)), 0);
}

/* x is inside lo .. hi exactly when (x - lo) mod 256 <= hi - lo. */
static bool box(const uint8_t *block, size_t stride, const bw_ranges *ranges, const uint64_t wanted[4],
                uint64_t mask[4]) {
    uint8x16_t inside[16];
    for (int k = 0; k < 16; k++) {
        inside[k] = vdupq_n_u8(255);
    }
    for (uint32_t i = 0; i < ranges->count; i++) {
        const uint8_t *column = block + ranges->dim[i] * stride;
        const uint8x16_t lo = vdupq_n_u8(ranges->lo[i]);
        const uint8x16_t width = vdupq_n_u8((uint8_t)(ranges->hi[i] - ranges->lo[i]));
        uint8x16_t any = vdupq_n_u8(0);
        for (int k = 0; k < 16; k++) {
            inside[k] = vandq_u8(inside[k], vcleq_u8(vsubq_u8(vld1q_u8(column + 16 * k), lo), width));
            any = vorrq_u8(any, inside[k]);
        }
        if (vmaxvq_u8(any) == 0) {
            memset(mask, 0, 4 * sizeof *mask);
            return false;
        }
    }
    for (int k = 0; k < 4; k++) {
        mask[k] = wanted[k] & bits(inside[4 * k], inside[4 * k + 1], inside[4 * k + 2], inside[4 * k + 3]);
    }
    return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
}

static void zones(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                  const bw_ranges *ranges, uint64_t *overlaps, uint64_t *contained) {
    uint8x16_t some[4], all[4];
    for (int k = 0; k < 4; k++) {
        some[k] = all[k] = vdupq_n_u8(255);
    }
    for (uint32_t i = 0; i < ranges->count; i++) {
        const uint8_t *low = zone_min + ranges->dim[i] * zone_stride + b;
        const uint8_t *high = zone_max + ranges->dim[i] * zone_stride + b;
        const uint8x16_t lo = vdupq_n_u8(ranges->lo[i]), hi = vdupq_n_u8(ranges->hi[i]);
        for (int k = 0; k < 4; k++) {
            uint8x16_t least = vld1q_u8(low + 16 * k), most = vld1q_u8(high + 16 * k);
            some[k] = vandq_u8(some[k], vandq_u8(vcleq_u8(least, hi), vcgeq_u8(most, lo)));
            all[k] = vandq_u8(all[k], vandq_u8(vcgeq_u8(least, lo), vcleq_u8(most, hi)));
        }
    }
    *overlaps = bits(some[0], some[1], some[2], some[3]);
    *contained = *overlaps & bits(all[0], all[1], all[2], all[3]);
}

/* Adds the squares of 16 byte differences to their sums. */
static inline void add_squares(uint8x16_t x, uint32x4_t sums[4]) {
    uint16x8_t low = vmull_u8(vget_low_u8(x), vget_low_u8(x)), high = vmull_high_u8(x, x);
    sums[0] = vaddw_u16(sums[0], vget_low_u16(low));
    sums[1] = vaddw_high_u16(sums[1], low);
    sums[2] = vaddw_u16(sums[2], vget_low_u16(high));
    sums[3] = vaddw_high_u16(sums[3], high);
}

static void distances(const uint8_t *points, size_t stride, const uint8_t query[BW_DIMS],
                      uint32_t distances[64]) {
    for (int place = 0; place < 64; place += 16) {
        uint32x4_t sums[4];
        sums[0] = sums[1] = sums[2] = sums[3] = vdupq_n_u32(0);
        for (int d = 0; d < BW_DIMS; d++) {
            add_squares(vabdq_u8(vld1q_u8(points + d * stride + place), vdupq_n_u8(query[d])), sums);
        }
        for (int k = 0; k < 4; k++) {
            vst1q_u32(distances + place + 4 * k, sums[k]);
        }
    }
}

/* Sums of 16 bits that stick at 65,535. Limits from there on need whole sums: while an answer is not full, or
 * the data is as wide as data can be. */
static uint64_t near(const uint8_t *points, size_t stride, const uint8_t query[BW_DIMS],
                     const uint8_t order[BW_DIMS], uint32_t limit, uint32_t out[64]) {
    uint64_t within = 0;
    if (limit >= UINT16_MAX) {
        distances(points, stride, query, out);
        for (int i = 0; i < 64; i++) {
            within |= (uint64_t)(out[i] <= limit) << i;
        }
        return within;
    }
    const uint16x8_t most = vdupq_n_u16((uint16_t)limit);
    uint16x8_t sums[8];
    for (int k = 0; k < 8; k++) {
        sums[k] = vdupq_n_u16(0);
    }
    for (int from = 0; from < BW_DIMS; from += 8) {
        for (int i = from; i < from + 8; i++) {
            const uint8_t *column = points + order[i] * stride;
            const uint8x16_t q = vdupq_n_u8(query[order[i]]);
            for (int k = 0; k < 4; k++) {
                uint8x16_t x = vabdq_u8(vld1q_u8(column + 16 * k), q);
                sums[2 * k] = vqaddq_u16(sums[2 * k], vmull_u8(vget_low_u8(x), vget_low_u8(x)));
                sums[2 * k + 1] = vqaddq_u16(sums[2 * k + 1], vmull_high_u8(x, x));
            }
        }
        uint8x16_t inside[4];
        for (int k = 0; k < 4; k++) {
            inside[k] = vcombine_u8(vmovn_u16(vcleq_u16(sums[2 * k], most)),
                                    vmovn_u16(vcleq_u16(sums[2 * k + 1], most)));
        }
        within = bits(inside[0], inside[1], inside[2], inside[3]);
        if (within == 0) {
            return 0;
        }
    }
    for (int k = 0; k < 8; k++) {
        vst1q_u32(out + 8 * k, vmovl_u16(vget_low_u16(sums[k])));
        vst1q_u32(out + 8 * k + 4, vmovl_high_u16(sums[k]));
    }
    return within;
}

static void zone_distances(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                           const uint8_t query[BW_DIMS], uint32_t distances[64]) {
    for (size_t place = 0; place < 64; place += 16) {
        uint32x4_t sums[4];
        sums[0] = sums[1] = sums[2] = sums[3] = vdupq_n_u32(0);
        for (int d = 0; d < BW_DIMS; d++) {
            size_t at = d * zone_stride + b + place;
            const uint8x16_t x = vdupq_n_u8(query[d]);
            add_squares(
                vmaxq_u8(vqsubq_u8(vld1q_u8(zone_min + at), x), vqsubq_u8(x, vld1q_u8(zone_max + at))), sums);
        }
        for (int k = 0; k < 4; k++) {
            vst1q_u32(distances + place + 4 * k, sums[k]);
        }
    }
}

/* Adds (linear + square * y) * y of eight values to their sums. */
static inline void add_quadratic(int16x8_t x, int16x8_t centre, int16x8_t linear, int16x8_t square,
                                 int32x4_t *low, int32x4_t *high) {
    int16x8_t y = vsubq_s16(x, centre), slope = vmlaq_s16(linear, square, y);
    *low = vmlal_s16(*low, vget_low_s16(slope), vget_low_s16(y));
    *high = vmlal_high_s16(*high, slope, y);
}

static uint64_t quadratic(const uint8_t *points, size_t stride, const bw_quadratic *q,
                          const int32_t least[BW_GROUPS], int32_t out[64]) {
    uint64_t reached = 0;
    for (int place = 0; place < 64; place += 16) {
        int32x4_t sums[4];
        sums[0] = sums[1] = sums[2] = sums[3] = vdupq_n_s32(0);
        uint32_t group = 0;
        for (; group < q->groups; group++) {
            for (uint32_t i = 8 * group; i < 8 * group + 8; i++) {
                const uint8x16_t x = vld1q_u8(points + q->dim[i] * stride + place);
                const int16x8_t centre = vdupq_n_s16(q->centre[i]), linear = vdupq_n_s16(q->linear[i]),
                                square = vdupq_n_s16(q->square[i]);
                add_quadratic(vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(x))), centre, linear, square,
                              &sums[0], &sums[1]);
                add_quadratic(vreinterpretq_s16_u16(vmovl_high_u8(x)), centre, linear, square, &sums[2],
                              &sums[3]);
            }
            int32x4_t most = vmaxq_s32(vmaxq_s32(sums[0], sums[1]), vmaxq_s32(sums[2], sums[3]));
            if (vmaxvq_s32(most) < least[group]) {
                break;
            }
        }
        for (int k = 0; group == q->groups && k < 4; k++) {
            vst1q_s32(out + place + 4 * k, sums[k]);
        }
        for (int i = place; group == q->groups && i < place + 16; i++) {
            reached |= (uint64_t)(out[i] >= least[q->groups - 1]) << i;
        }
    }
    return reached;
}

static int32_t fine(const uint8_t code[BW_FINE_DIMS], const bw_fine_quadratic *q) {
    int32x4_t low = vdupq_n_s32(0), high = low;
    for (int d = 0; d < BW_FINE_DIMS; d += 8) {
        add_quadratic(vreinterpretq_s16_u16(vmovl_u8(vld1_u8(code + d))), vld1q_s16(q->centre + d),
                      vld1q_s16(q->linear + d), vld1q_s16(q->square + d), &low, &high);
    }
    return vaddvq_s32(vaddq_s32(low, high));
}

#if defined(__ARM_FEATURE_CRC32)
static uint32_t crc32c(uint32_t crc, const void *data, size_t bytes) {
    const uint8_t *at = data;
    crc = ~crc;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        uint64_t value;
        memcpy(&value, at, sizeof value);
        crc = __crc32cd(crc, value);
    }
    for (; bytes > 0; bytes--, at++) {
        crc = __crc32cb(crc, *at);
    }
    return ~crc;
}
#else
static uint32_t crc32c(uint32_t crc, const void *data, size_t bytes) {
    return bw_crc32c(crc, data, bytes); /* built for ARMv8.0, where the instruction is an option */
}
#endif

const bw_kernels *bw_kernels_neon(void) {
    static const bw_kernels table = {
        .name = "neon",
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
        .crc32c = crc32c,
    };
    return &table;
}
#else
const bw_kernels *bw_kernels_neon(void) {
    return NULL;
}
#endif
