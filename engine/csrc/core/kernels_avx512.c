/* kernels_avx512.c - the kernels with AVX-512 (F, BW, VL, DQ), 64 bytes a register and comparisons into mask
 * registers. */
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>
#include <string.h>

static inline __m512i load(const uint8_t *at) {
    return _mm512_loadu_si512((const void *)at);
}

/* x is inside lo .. hi exactly when (x - lo) mod 256 <= hi - lo. */
static bool box(const uint8_t *block, size_t stride, const bw_ranges *ranges, uint64_t mask[4]) {
    __mmask64 inside[4] = {~0ull, ~0ull, ~0ull, ~0ull};
    for (uint32_t i = 0; i < ranges->count; i++) {
        const uint8_t *column = block + ranges->dim[i] * stride;
        const __m512i lo = _mm512_set1_epi8((char)ranges->lo[i]);
        const __m512i width = _mm512_set1_epi8((char)(ranges->hi[i] - ranges->lo[i]));
        for (int k = 0; k < 4; k++) {
            inside[k] =
                _mm512_mask_cmple_epu8_mask(inside[k], _mm512_sub_epi8(load(column + 64 * k), lo), width);
        }
        if ((inside[0] | inside[1] | inside[2] | inside[3]) == 0) {
            memset(mask, 0, 4 * sizeof *mask);
            return false;
        }
    }
    for (int k = 0; k < 4; k++) {
        mask[k] = inside[k];
    }
    return true;
}

static void zones(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                  const bw_ranges *ranges, uint64_t *overlaps, uint64_t *contained) {
    __mmask64 some = ~0ull, all = ~0ull;
    for (uint32_t i = 0; i < ranges->count && some; i++) {
        const __m512i least = load(zone_min + ranges->dim[i] * zone_stride + b);
        const __m512i most = load(zone_max + ranges->dim[i] * zone_stride + b);
        const __m512i lo = _mm512_set1_epi8((char)ranges->lo[i]), hi = _mm512_set1_epi8((char)ranges->hi[i]);
        some = _mm512_mask_cmple_epu8_mask(some, least, hi);
        some = _mm512_mask_cmpge_epu8_mask(some, most, lo);
        all = _mm512_mask_cmpge_epu8_mask(all, least, lo);
        all = _mm512_mask_cmple_epu8_mask(all, most, hi);
    }
    *overlaps = some;
    *contained = some & all;
}

/* Adds a * a + b * b of 64 rows to their sums. Unpacking works within quarters of a register, so that quarter
 * q of sums[k] holds rows 16 q + 4 k .. 16 q + 4 k + 3; store_sums puts them in order. */
static inline void add_squares(__m512i a, __m512i b, __m512i sums[4]) {
    const __m512i zero = _mm512_setzero_si512();
    __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
    __m512i pairs[4] = {_mm512_unpacklo_epi8(low, zero), _mm512_unpackhi_epi8(low, zero),
                        _mm512_unpacklo_epi8(high, zero), _mm512_unpackhi_epi8(high, zero)};
    for (int k = 0; k < 4; k++) {
        sums[k] = _mm512_add_epi32(sums[k], _mm512_madd_epi16(pairs[k], pairs[k]));
    }
}

static inline void store_sums(const __m512i sums[4], uint32_t *out) {
    for (int k = 0; k < 4; k++) {
        _mm_storeu_si128((__m128i *)(void *)(out + 4 * k), _mm512_extracti32x4_epi32(sums[k], 0));
        _mm_storeu_si128((__m128i *)(void *)(out + 16 + 4 * k), _mm512_extracti32x4_epi32(sums[k], 1));
        _mm_storeu_si128((__m128i *)(void *)(out + 32 + 4 * k), _mm512_extracti32x4_epi32(sums[k], 2));
        _mm_storeu_si128((__m128i *)(void *)(out + 48 + 4 * k), _mm512_extracti32x4_epi32(sums[k], 3));
    }
}

static inline __m512i difference(__m512i x, __m512i y) {
    return _mm512_or_si512(_mm512_subs_epu8(x, y), _mm512_subs_epu8(y, x));
}

static void distances(const uint8_t *block, size_t stride, const uint8_t query[BW_DIMS],
                      uint32_t distances[256]) {
    for (int row = 0; row < BW_BLOCK_ROWS; row += 64) {
        __m512i sums[4];
        sums[0] = sums[1] = sums[2] = sums[3] = _mm512_setzero_si512();
        for (int d = 0; d < BW_DIMS; d += 2) {
            const uint8_t *column = block + d * stride + row;
            add_squares(difference(load(column), _mm512_set1_epi8((char)query[d])),
                        difference(load(column + stride), _mm512_set1_epi8((char)query[d + 1])), sums);
        }
        store_sums(sums, distances + row);
    }
}

static inline __m512i outside(const uint8_t *low, const uint8_t *high, uint8_t value) {
    const __m512i x = _mm512_set1_epi8((char)value);
    return _mm512_max_epu8(_mm512_subs_epu8(load(low), x), _mm512_subs_epu8(x, load(high)));
}

static void zone_distances(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                           const uint8_t query[BW_DIMS], uint32_t distances[64]) {
    __m512i sums[4];
    sums[0] = sums[1] = sums[2] = sums[3] = _mm512_setzero_si512();
    for (int d = 0; d < BW_DIMS; d += 2) {
        const uint8_t *low = zone_min + d * zone_stride + b, *high = zone_max + d * zone_stride + b;
        add_squares(outside(low, high, query[d]),
                    outside(low + zone_stride, high + zone_stride, query[d + 1]), sums);
    }
    store_sums(sums, distances);
}

const bw_kernels *bw_kernels_avx512(void) {
    static const bw_kernels table = {
        .name = "avx512",
        .box = box,
        .zones = zones,
        .distances = distances,
        .zone_distances = zone_distances,
        .scores = bw_scores_generic,
        .crc32c = bw_crc32c_sse42,
    };
    return &table;
}
#else
const bw_kernels *bw_kernels_avx512(void) {
    return NULL;
}
#endif
