/* kernels_avx512.c - the kernels with AVX-512 (F, BW, VL, DQ), 64 bytes a register and comparisons into mask
 * registers. */
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>
#include <string.h>

#define PLANE_BYTES 64
#define PLANE_LOAD_TWO(p, q)                                                                                 \
    _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)(p))),       \
                       _mm256_loadu_si256((const __m256i *)(const void *)(q)), 1)
#define INSIDE(a, x, y) ((plane)_mm512_ternarylogic_epi64((__m512i)(a), (__m512i)(x), (__m512i)(y), 0x40))
#define MAJORITY(a, b, c) ((plane)_mm512_ternarylogic_epi64((__m512i)(a), (__m512i)(b), (__m512i)(c), 0xe8))

/* Sixteen words at a time, their numbers packed in a register. */
static inline uint32_t plane_select_avx512(const uint64_t *words, uint32_t n, uint64_t bits,
                                           uint16_t *numbers) {
    const __m512i any = _mm512_set1_epi64((long long)bits), sixteen = _mm512_set1_epi32(16);
    __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t left = n - i < 16 ? n - i : 16;
        uint32_t places = ((uint32_t)1 << left) - 1;
        __m512i low = _mm512_maskz_loadu_epi64((__mmask8)places, words + i);
        __m512i high = _mm512_maskz_loadu_epi64((__mmask8)(places >> 8), words + i + 8);
        uint32_t taken = _mm512_test_epi64_mask(low, any) | (uint32_t)_mm512_test_epi64_mask(high, any) << 8;
        __m512i packed = _mm512_maskz_compress_epi32((__mmask16)taken, number);
        _mm256_storeu_si256((__m256i *)(void *)(numbers + count), _mm512_cvtepi32_epi16(packed));
        count += (uint32_t)__builtin_popcount(taken);
        number = _mm512_add_epi32(number, sixteen);
    }
    return count;
}
#define PLANE_SELECT plane_select_avx512
#include "kernels_learn.h"
#include "kernels_planes.h"
#include "kernels_score.h"

static inline __m512i load(const uint8_t *at) {
    return _mm512_loadu_si512((const void *)at);
}

/* x is inside lo .. hi exactly when (x - lo) mod 256 <= hi - lo. */
static bool box(const uint8_t *block, size_t stride, const bw_ranges *ranges, const uint64_t wanted[4],
                uint64_t mask[4]) {
    __mmask64 inside[4] = {wanted[0], wanted[1], wanted[2], wanted[3]};
    for (uint32_t i = 0; i < ranges->count; i++) {
        const uint8_t *column = block + ranges->dim[i] * stride;
        const __m512i lo = _mm512_set1_epi8((char)ranges->lo[i]);
        const __m512i width = _mm512_set1_epi8((char)(ranges->hi[i] - ranges->lo[i]));
        for (int k = 0; k < 4; k++) {
            inside[k] =
                _mm512_mask_cmple_epu8_mask(inside[k], _mm512_sub_epi8(load(column + 64 * k), lo), width);
        }
        /* now and then: a branch that guesses wrong costs more than the ranges that it saves */
        if (i % 4 == 3 && (inside[0] | inside[1] | inside[2] | inside[3]) == 0) {
            break;
        }
    }
    for (int k = 0; k < 4; k++) {
        mask[k] = inside[k];
    }
    return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
}

__attribute__((target("avx512vbmi2"))) static void gather_packed(const uint8_t *from, size_t stride,
                                                                 uint32_t dims, uint64_t rows, uint8_t *to) {
    for (; dims; dims &= dims - 1) {
        uint32_t d = (uint32_t)__builtin_ctz(dims);
        _mm512_storeu_si512((void *)(to + d * BW_GATHER_STRIDE),
                            _mm512_maskz_compress_epi8(rows, load(from + d * stride)));
    }
}

static void gather(const uint8_t *from, size_t stride, uint32_t dims, uint64_t rows, uint8_t *to) {
    if (bw_cpu_has_vbmi2()) {
        gather_packed(from, stride, dims, rows, to);
    } else {
        bw_gather_generic(from, stride, dims, rows, to);
    }
}

/* Saturating differences are zero where a bound is kept; those of all ranges are joined by OR. */
static void zones(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                  const bw_ranges *ranges, uint64_t *overlaps, uint64_t *contained) {
    __m512i apart = _mm512_setzero_si512(), over = apart; /* zero: overlaps, contained */
    for (uint32_t i = 0; i < ranges->count; i++) {
        const __m512i least = load(zone_min + ranges->dim[i] * zone_stride + b);
        const __m512i most = load(zone_max + ranges->dim[i] * zone_stride + b);
        const __m512i lo = _mm512_set1_epi8((char)ranges->lo[i]), hi = _mm512_set1_epi8((char)ranges->hi[i]);
        apart =
            _mm512_ternarylogic_epi64(apart, _mm512_subs_epu8(least, hi), _mm512_subs_epu8(lo, most), 0xfe);
        over = _mm512_ternarylogic_epi64(over, _mm512_subs_epu8(lo, least), _mm512_subs_epu8(most, hi), 0xfe);
        if (i % 4 == 3 && _mm512_testn_epi8_mask(apart, apart) == 0) {
            break;
        }
    }
    *overlaps = _mm512_testn_epi8_mask(apart, apart);
    *contained = *overlaps & _mm512_testn_epi8_mask(over, over);
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

static void distances(const uint8_t *points, size_t stride, const uint8_t query[BW_DIMS],
                      uint32_t distances[64]) {
    __m512i sums[4];
    sums[0] = sums[1] = sums[2] = sums[3] = _mm512_setzero_si512();
    for (int d = 0; d < BW_DIMS; d += 2) {
        const uint8_t *column = points + d * stride;
        add_squares(difference(load(column), _mm512_set1_epi8((char)query[d])),
                    difference(load(column + stride), _mm512_set1_epi8((char)query[d + 1])), sums);
    }
    store_sums(sums, distances);
}

/* Sums of 16 bits that stick at 65,535, the even places apart from the odd ones. Limits from there on need
 * whole sums: while an answer is not full, or the data is as wide as data can be. */
static uint64_t near(const uint8_t *points, size_t stride, const uint8_t query[BW_DIMS],
                     const uint8_t order[BW_DIMS], uint32_t limit, uint32_t out[64]) {
    if (limit >= UINT16_MAX) {
        const __m512i most = _mm512_set1_epi32((int)limit);
        uint64_t within = 0;
        distances(points, stride, query, out);
        for (int k = 0; k < 4; k++) {
            __m512i sums = _mm512_loadu_si512((const void *)(out + 16 * k));
            within |= (uint64_t)_mm512_cmple_epu32_mask(sums, most) << 16 * k;
        }
        return within;
    }
    const __m512i low = _mm512_set1_epi16(255), most = _mm512_set1_epi16((short)limit);
    __m512i even = _mm512_setzero_si512(), odd = even;
    __mmask32 some = 0, others = 0;
    for (int from = 0; from < BW_DIMS; from += 8) {
        for (int i = from; i < from + 8; i++) {
            const __m512i x = load(points + order[i] * stride), q = _mm512_set1_epi16(query[order[i]]);
            __m512i a = _mm512_sub_epi16(_mm512_and_si512(x, low), q);
            __m512i b = _mm512_sub_epi16(_mm512_srli_epi16(x, 8), q);
            even = _mm512_adds_epu16(even, _mm512_mullo_epi16(a, a));
            odd = _mm512_adds_epu16(odd, _mm512_mullo_epi16(b, b));
        }
        some = _mm512_cmple_epu16_mask(even, most);
        others = _mm512_cmple_epu16_mask(odd, most);
        if ((some | others) == 0) {
            return 0;
        }
    }
    /* Unpacking works within quarters of a register. */
    const __m512i first = _mm512_unpacklo_epi16(even, odd), last = _mm512_unpackhi_epi16(even, odd);
    const __m512i a = _mm512_shuffle_i64x2(first, last, 0x44), b = _mm512_shuffle_i64x2(first, last, 0xEE);
    const __m512i rows[2] = {_mm512_shuffle_i64x2(a, a, 0xD8), _mm512_shuffle_i64x2(b, b, 0xD8)};
    for (int k = 0; k < 2; k++) {
        _mm512_storeu_si512((void *)(out + 32 * k), _mm512_cvtepu16_epi32(_mm512_castsi512_si256(rows[k])));
        _mm512_storeu_si512((void *)(out + 32 * k + 16),
                            _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(rows[k], 1)));
    }
    return _pdep_u64(some, 0x5555555555555555) | _pdep_u64(others, 0xAAAAAAAAAAAAAAAA);
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

/* Two neighbouring 16-bit numbers of an array in every pair of places. */
static inline __m512i two_of(const int16_t *numbers) {
    int32_t both;
    memcpy(&both, numbers, sizeof both);
    return _mm512_set1_epi32(both);
}

/* Pairs of dimensions side by side in 32 bits, as in add_squares. */
static uint64_t quadratic(const uint8_t *points, size_t stride, const bw_quadratic *q,
                          const int32_t least[BW_GROUPS], int32_t out[64]) {
    const __m512i zero = _mm512_setzero_si512();
    __m512i sums[4];
    sums[0] = sums[1] = sums[2] = sums[3] = zero;
    for (uint32_t group = 0; group < q->groups; group++) {
        for (uint32_t i = 8 * group; i < 8 * group + 8; i += 2) {
            const __m512i a = load(points + q->dim[i] * stride), b = load(points + q->dim[i + 1] * stride);
            const __m512i centre = two_of(q->centre + i), linear = two_of(q->linear + i),
                          square = two_of(q->square + i);
            __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
            __m512i pairs[4] = {_mm512_unpacklo_epi8(low, zero), _mm512_unpackhi_epi8(low, zero),
                                _mm512_unpacklo_epi8(high, zero), _mm512_unpackhi_epi8(high, zero)};
            for (int k = 0; k < 4; k++) {
                __m512i y = _mm512_sub_epi16(pairs[k], centre);
                __m512i slope = _mm512_add_epi16(_mm512_mullo_epi16(y, square), linear);
                sums[k] = _mm512_add_epi32(sums[k], _mm512_madd_epi16(slope, y));
            }
        }
        const __m512i most =
            _mm512_max_epi32(_mm512_max_epi32(sums[0], sums[1]), _mm512_max_epi32(sums[2], sums[3]));
        if (_mm512_cmpge_epi32_mask(most, _mm512_set1_epi32(least[group])) == 0) {
            return 0;
        }
    }
    store_sums(sums, (uint32_t *)out);
    const __m512i last = _mm512_set1_epi32(least[q->groups - 1]);
    uint64_t reached = 0;
    for (int k = 0; k < 4; k++) {
        __m512i row = _mm512_loadu_si512((const void *)(out + 16 * k));
        reached |= (uint64_t)_mm512_cmpge_epi32_mask(row, last) << 16 * k;
    }
    return reached;
}

static int32_t fine(const uint8_t code[BW_FINE_DIMS], const bw_fine_quadratic *q) {
    __m512i sum = _mm512_setzero_si512();
    for (int d = 0; d < BW_FINE_DIMS; d += 32) {
        __m512i x = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(code + d)));
        __m512i y = _mm512_sub_epi16(x, _mm512_loadu_si512((const void *)(q->centre + d)));
        __m512i slope =
            _mm512_add_epi16(_mm512_mullo_epi16(y, _mm512_loadu_si512((const void *)(q->square + d))),
                             _mm512_loadu_si512((const void *)(q->linear + d)));
        sum = _mm512_add_epi32(sum, _mm512_madd_epi16(slope, y));
    }
    return _mm512_reduce_add_epi32(sum);
}

const bw_kernels *bw_kernels_avx512(void) {
    static const bw_kernels table = {
        .name = "avx512",
        .box = box,
        .planes = planes,
        .gather = gather,
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
        .crc32c = bw_crc32c_sse42,
    };
    return &table;
}
#else
const bw_kernels *bw_kernels_avx512(void) {
    return NULL;
}
#endif
