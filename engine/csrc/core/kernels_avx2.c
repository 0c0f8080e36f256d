/* kernels_avx2.c - the kernels with AVX2, 32 bytes a register; compiled with flags of its own, run only where
 * cpu.c allows.
 *
 * A range test in bytes: x is inside lo .. hi exactly when (x - lo) mod 256 <= hi - lo, that is, when the
 * saturating difference of the two is zero. Ranges are joined by OR of those differences: zero means inside
 * all of them. */
#include "kernels.h"

#if defined(__AVX2__) && defined(__SSE4_2__) && defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#define PLANE_BYTES 32
#include "kernels_learn.h"
#include "kernels_planes.h"
#include "kernels_score.h"

static inline __m256i load(const uint8_t *at) {
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

static inline uint32_t zero_bytes(__m256i x) {
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(x, _mm256_setzero_si256()));
}

static bool box(const uint8_t *block, size_t stride, const bw_ranges *ranges, const uint64_t wanted[4],
                uint64_t mask[4]) {
    __m256i out[8]; /* of each row: zero while it is inside */
    for (int k = 0; k < 8; k++) {
        out[k] = _mm256_setzero_si256();
    }
    for (uint32_t i = 0; i < ranges->count; i++) {
        const uint8_t *column = block + ranges->dim[i] * stride;
        const __m256i lo = _mm256_set1_epi8((char)ranges->lo[i]);
        const __m256i width = _mm256_set1_epi8((char)(ranges->hi[i] - ranges->lo[i]));
        for (int k = 0; k < 8; k++) {
            __m256i x = _mm256_sub_epi8(load(column + 32 * k), lo);
            out[k] = _mm256_or_si256(out[k], _mm256_subs_epu8(x, width));
        }
        if (i % 2 == 0 && i + 1 < ranges->count) {
            continue; /* a branch that guesses wrong costs more than the range that it saves */
        }
        __m256i least = _mm256_min_epu8(
            _mm256_min_epu8(_mm256_min_epu8(out[0], out[1]), _mm256_min_epu8(out[2], out[3])),
            _mm256_min_epu8(_mm256_min_epu8(out[4], out[5]), _mm256_min_epu8(out[6], out[7])));
        if (zero_bytes(least) == 0) {
            memset(mask, 0, 4 * sizeof *mask);
            return false;
        }
    }
    for (int k = 0; k < 4; k++) {
        mask[k] = wanted[k] & (zero_bytes(out[2 * k]) | (uint64_t)zero_bytes(out[2 * k + 1]) << 32);
    }
    return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
}

static void zones(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                  const bw_ranges *ranges, uint64_t *overlaps, uint64_t *contained) {
    __m256i apart[2], over[2]; /* zero: overlaps, contained */
    apart[0] = apart[1] = over[0] = over[1] = _mm256_setzero_si256();
    for (uint32_t i = 0; i < ranges->count; i++) {
        const uint8_t *low = zone_min + ranges->dim[i] * zone_stride + b;
        const uint8_t *high = zone_max + ranges->dim[i] * zone_stride + b;
        const __m256i lo = _mm256_set1_epi8((char)ranges->lo[i]), hi = _mm256_set1_epi8((char)ranges->hi[i]);
        for (int k = 0; k < 2; k++) {
            __m256i least = load(low + 32 * k), most = load(high + 32 * k);
            apart[k] = _mm256_or_si256(
                apart[k], _mm256_or_si256(_mm256_subs_epu8(least, hi), _mm256_subs_epu8(lo, most)));
            over[k] = _mm256_or_si256(
                over[k], _mm256_or_si256(_mm256_subs_epu8(lo, least), _mm256_subs_epu8(most, hi)));
        }
        if (zero_bytes(_mm256_min_epu8(apart[0], apart[1])) == 0) {
            *overlaps = *contained = 0;
            return;
        }
    }
    *overlaps = zero_bytes(apart[0]) | (uint64_t)zero_bytes(apart[1]) << 32;
    *contained = *overlaps & (zero_bytes(over[0]) | (uint64_t)zero_bytes(over[1]) << 32);
}

/* Adds a * a + b * b of 32 rows to their sums. Unpacking works within halves of a register, so that sums[k]
 * holds rows 4 k .. 4 k + 3 and 16 + 4 k .. 16 + 4 k + 3; store_sums puts them in order. */
static inline void add_squares(__m256i a, __m256i b, __m256i sums[4]) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
    __m256i pairs[4] = {_mm256_unpacklo_epi8(low, zero), _mm256_unpackhi_epi8(low, zero),
                        _mm256_unpacklo_epi8(high, zero), _mm256_unpackhi_epi8(high, zero)};
    for (int k = 0; k < 4; k++) {
        sums[k] = _mm256_add_epi32(sums[k], _mm256_madd_epi16(pairs[k], pairs[k]));
    }
}

static inline void store_sums(const __m256i sums[4], uint32_t *out) {
    for (int k = 0; k < 2; k++) {
        __m256i even = sums[2 * k], odd = sums[2 * k + 1];
        _mm256_storeu_si256((__m256i *)(void *)(out + 8 * k), _mm256_permute2x128_si256(even, odd, 0x20));
        _mm256_storeu_si256((__m256i *)(void *)(out + 16 + 8 * k),
                            _mm256_permute2x128_si256(even, odd, 0x31));
    }
}

static inline __m256i difference(__m256i x, __m256i y) {
    return _mm256_or_si256(_mm256_subs_epu8(x, y), _mm256_subs_epu8(y, x));
}

static void distances(const uint8_t *points, size_t stride, const uint8_t query[BW_DIMS],
                      uint32_t distances[64]) {
    for (int place = 0; place < 64; place += 32) {
        __m256i sums[4];
        sums[0] = sums[1] = sums[2] = sums[3] = _mm256_setzero_si256();
        for (int d = 0; d < BW_DIMS; d += 2) {
            const uint8_t *column = points + d * stride + place;
            add_squares(difference(load(column), _mm256_set1_epi8((char)query[d])),
                        difference(load(column + stride), _mm256_set1_epi8((char)query[d + 1])), sums);
        }
        store_sums(sums, distances + place);
    }
}

/* Limits from 65,535 on, which sums of 16 bits cannot tell apart: while an answer is not full, or the data
 * is as wide as data can be. */
static uint64_t near_far(const uint8_t *points, size_t stride, const uint8_t query[BW_DIMS], uint32_t limit,
                         uint32_t out[64]) {
    distances(points, stride, query, out);
    const __m256i most = _mm256_set1_epi32((int)limit); /* distances have 21 bits: signed will do */
    uint64_t within = 0;
    for (int k = 0; k < 8; k++) {
        __m256i over = _mm256_cmpgt_epi32(load((const uint8_t *)(out + 8 * k)), most);
        within |= (uint64_t)(255 & ~_mm256_movemask_ps(_mm256_castsi256_ps(over))) << 8 * k;
    }
    return within;
}

/* Sums of 16 bits that stick at 65,535, the even places apart from the odd ones. */
static uint64_t near(const uint8_t *points, size_t stride, const uint8_t query[BW_DIMS],
                     const uint8_t order[BW_DIMS], uint32_t limit, uint32_t out[64]) {
    if (limit >= UINT16_MAX) {
        return near_far(points, stride, query, limit < INT32_MAX ? limit : INT32_MAX, out);
    }
    const __m256i low = _mm256_set1_epi16(255), most = _mm256_set1_epi16((short)limit);
    __m256i even[2], odd[2], within[2];
    even[0] = even[1] = odd[0] = odd[1] = _mm256_setzero_si256();
    for (int from = 0; from < BW_DIMS; from += 8) {
        for (int i = from; i < from + 8; i++) {
            const uint8_t *column = points + order[i] * stride;
            const __m256i q = _mm256_set1_epi16(query[order[i]]);
            for (int k = 0; k < 2; k++) {
                __m256i x = load(column + 32 * k);
                __m256i a = _mm256_sub_epi16(_mm256_and_si256(x, low), q);
                __m256i b = _mm256_sub_epi16(_mm256_srli_epi16(x, 8), q);
                even[k] = _mm256_adds_epu16(even[k], _mm256_mullo_epi16(a, a));
                odd[k] = _mm256_adds_epu16(odd[k], _mm256_mullo_epi16(b, b));
            }
        }
        for (int k = 0; k < 2; k++) {
            within[k] = _mm256_blendv_epi8(_mm256_cmpeq_epi16(_mm256_min_epu16(odd[k], most), odd[k]),
                                           _mm256_cmpeq_epi16(_mm256_min_epu16(even[k], most), even[k]), low);
        }
        if (_mm256_testz_si256(within[0], within[0]) && _mm256_testz_si256(within[1], within[1])) {
            return 0;
        }
    }
    for (int k = 0; k < 2; k++) { /* unpacking works within halves of a register */
        __m256i first = _mm256_unpacklo_epi16(even[k], odd[k]), last = _mm256_unpackhi_epi16(even[k], odd[k]);
        __m128i quarters[4] = {_mm256_castsi256_si128(first), _mm256_castsi256_si128(last),
                               _mm256_extracti128_si256(first, 1), _mm256_extracti128_si256(last, 1)};
        for (int i = 0; i < 4; i++) {
            _mm256_storeu_si256((__m256i *)(void *)(out + 32 * k + 8 * i),
                                _mm256_cvtepu16_epi32(quarters[i]));
        }
    }
    return (uint32_t)_mm256_movemask_epi8(within[0]) | (uint64_t)(uint32_t)_mm256_movemask_epi8(within[1])
                                                           << 32;
}

static inline __m256i outside(const uint8_t *low, const uint8_t *high, uint8_t value) {
    const __m256i x = _mm256_set1_epi8((char)value);
    return _mm256_max_epu8(_mm256_subs_epu8(load(low), x), _mm256_subs_epu8(x, load(high)));
}

static void zone_distances(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                           const uint8_t query[BW_DIMS], uint32_t distances[64]) {
    for (size_t place = 0; place < 64; place += 32) {
        __m256i sums[4];
        sums[0] = sums[1] = sums[2] = sums[3] = _mm256_setzero_si256();
        for (int d = 0; d < BW_DIMS; d += 2) {
            const uint8_t *low = zone_min + d * zone_stride + b + place,
                          *high = zone_max + d * zone_stride + b + place;
            add_squares(outside(low, high, query[d]),
                        outside(low + zone_stride, high + zone_stride, query[d + 1]), sums);
        }
        store_sums(sums, distances + place);
    }
}

/* Two neighbouring 16-bit numbers of an array in every pair of places. */
static inline __m256i two_of(const int16_t *numbers) {
    int32_t both;
    memcpy(&both, numbers, sizeof both);
    return _mm256_set1_epi32(both);
}

/* Pairs of dimensions side by side in 32 bits, as in add_squares. */
static uint64_t quadratic(const uint8_t *points, size_t stride, const bw_quadratic *q,
                          const int32_t least[BW_GROUPS], int32_t out[64]) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i sums[8], most;
    for (int k = 0; k < 8; k++) {
        sums[k] = zero;
    }
    for (uint32_t group = 0; group < q->groups; group++) {
        for (uint32_t i = 8 * group; i < 8 * group + 8; i += 2) {
            const __m256i centre = two_of(q->centre + i), linear = two_of(q->linear + i),
                          square = two_of(q->square + i);
            for (int half = 0; half < 2; half++) {
                __m256i a = load(points + q->dim[i] * stride + 32 * half);
                __m256i b = load(points + q->dim[i + 1] * stride + 32 * half);
                __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
                __m256i pairs[4] = {_mm256_unpacklo_epi8(low, zero), _mm256_unpackhi_epi8(low, zero),
                                    _mm256_unpacklo_epi8(high, zero), _mm256_unpackhi_epi8(high, zero)};
                for (int k = 0; k < 4; k++) {
                    __m256i y = _mm256_sub_epi16(pairs[k], centre);
                    __m256i slope = _mm256_add_epi16(_mm256_mullo_epi16(y, square), linear);
                    sums[4 * half + k] = _mm256_add_epi32(sums[4 * half + k], _mm256_madd_epi16(slope, y));
                }
            }
        }
        most = sums[0];
        for (int k = 1; k < 8; k++) {
            most = _mm256_max_epi32(most, sums[k]);
        }
        __m256i under = _mm256_cmpgt_epi32(_mm256_set1_epi32(least[group]), most);
        if (_mm256_movemask_epi8(under) == -1) {
            return 0;
        }
    }
    store_sums(sums, (uint32_t *)out);
    store_sums(sums + 4, (uint32_t *)out + 32);
    const __m256i last = _mm256_set1_epi32(least[q->groups - 1]);
    uint64_t reached = 0;
    for (int k = 0; k < 8; k++) {
        __m256i under = _mm256_cmpgt_epi32(last, load((const uint8_t *)(out + 8 * k)));
        reached |= (uint64_t)(255 & ~_mm256_movemask_ps(_mm256_castsi256_ps(under))) << 8 * k;
    }
    return reached;
}

static int32_t fine(const uint8_t code[BW_FINE_DIMS], const bw_fine_quadratic *q) {
    __m256i sum = _mm256_setzero_si256();
    for (int d = 0; d < BW_FINE_DIMS; d += 16) {
        __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(code + d)));
        __m256i y = _mm256_sub_epi16(x, load((const uint8_t *)(q->centre + d)));
        __m256i slope = _mm256_add_epi16(_mm256_mullo_epi16(y, load((const uint8_t *)(q->square + d))),
                                         load((const uint8_t *)(q->linear + d)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(slope, y));
    }
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

/* ---- CRC-32C ----
 * The instruction has a latency of three cycles, so three stretches run side by side. The checksum register
 * after a stretch of STRETCH further bytes is the register before it times x^(8 STRETCH), modulo the
 * polynomial, plus the stretch's own; polynomials are reflected: the highest bit is x^0. */

#define STRETCH ((size_t)8192)
#define SHIFT_ONE 0x28461564u /* x^(8 STRETCH) */
#define SHIFT_TWO 0xbf455269u /* x^(16 STRETCH) */

static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (int bit = 0; bit < 32; bit++) {
        product ^= b & (0u - (a >> 31));
        a <<= 1;
        b = (b >> 1) ^ (0x82f63b78u & (0u - (b & 1)));
    }
    return product;
}

static inline uint64_t word(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

uint32_t bw_crc32c_sse42(uint32_t crc, const void *data, size_t bytes) {
    const uint8_t *at = data;
    uint64_t first = ~crc;
    for (; bytes >= 3 * STRETCH; bytes -= 3 * STRETCH, at += 3 * STRETCH) {
        uint64_t second = 0, third = 0;
        for (size_t i = 0; i < STRETCH; i += 8) {
            first = _mm_crc32_u64(first, word(at + i));
            second = _mm_crc32_u64(second, word(at + STRETCH + i));
            third = _mm_crc32_u64(third, word(at + 2 * STRETCH + i));
        }
        first =
            multiply((uint32_t)first, SHIFT_TWO) ^ multiply((uint32_t)second, SHIFT_ONE) ^ (uint32_t)third;
    }
    for (; bytes >= 8; bytes -= 8, at += 8) {
        first = _mm_crc32_u64(first, word(at));
    }
    uint32_t rest = (uint32_t)first;
    for (; bytes > 0; bytes--, at++) {
        rest = _mm_crc32_u8(rest, *at);
    }
    return ~rest;
}

const bw_kernels *bw_kernels_avx2(void) {
    static const bw_kernels table = {
        .name = "avx2",
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
        .crc32c = bw_crc32c_sse42,
    };
    return &table;
}
#else
const bw_kernels *bw_kernels_avx2(void) {
    return NULL;
}
#endif
