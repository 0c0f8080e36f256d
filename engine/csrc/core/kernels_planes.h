/* kernels_planes.h - the plane kernel, compiled once for each instruction set. A kernels_*.c includes it
 * after it has defined PLANE_BYTES              16, 32 or 64: the width of its registers; 64 holds the same
 * plane of two blocks, PLANE_LOAD_TWO(p, q)     only with 64: the register of 32 bytes at p and 32 at q, and,
 * where it has instructions for them, INSIDE(a, x, y), a & x & ~y, MAJORITY(a, b, c), the bits that at least
 * two of three have, and PLANE_SELECT, a function like plane_select below.
 *
 * Bin slices are tested as in O'Neil and Quass, "Improved query performance with variant indexes" (SIGMOD
 * 1997); votes are added by carry-save adders, three bits to two, as in the Harley-Seal population count
 * (Warren, "Hacker's Delight"). */
#include "kernels.h"

#include <string.h>

typedef uint64_t plane __attribute__((vector_size(PLANE_BYTES), may_alias));

#define PLANE_WORDS (PLANE_BYTES / 8)
#define PLANE_PASSES (64 / PLANE_BYTES) /* to see two blocks of 32 bytes a plane */
#define PLANE_STRIDE 4                  /* words from one plane of a block to the next */
#ifndef INSIDE
#define INSIDE(a, x, y) ((a) & (x) & ~(y))
#endif
#ifndef MAJORITY
#define MAJORITY(a, b, c) (((a) & (b)) | (((a) ^ (b)) & (c)))
#endif

#ifndef PLANE_SELECT
#define PLANE_SELECT plane_select
/* Writes the numbers i below n of the words that have any bit of `bits`, ascending; returns how many. There
 * is room for 16 more. */
static inline uint32_t plane_select(const uint64_t *words, uint32_t n, uint64_t bits, uint16_t *numbers) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        numbers[count] = (uint16_t)i; /* taken back by the next one unless it counts */
        count += (words[i] & bits) != 0;
    }
    return count;
}
#endif

static inline plane plane_load(const uint64_t *p, const uint64_t *q) {
#if PLANE_BYTES == 64
    return (plane)PLANE_LOAD_TWO(p, q);
#else
    (void)q;
    plane loaded;
    memcpy(&loaded, p, sizeof loaded);
    return loaded;
#endif
}

/* Bitmaps stand 64 bytes apart, whatever the registers. */
static inline plane *plane_at(uint8_t *bitmaps, size_t place) {
    return (plane *)(void *)(bitmaps + 64 * place);
}

/* The places of dimension d in `at_least`: of bin >= t at 8 d + t, for t of 1 .. 7. */
static inline void plane_expand(const uint64_t *p, const uint64_t *q, const uint8_t *const next[2],
                                uint32_t dims, uint8_t *at_least) {
    for (uint32_t left = dims; left; left &= left - 1) {
        uint32_t d = (uint32_t)__builtin_ctz(left);
        size_t word = (size_t)d * 3 * PLANE_STRIDE;
        if (next) {
            __builtin_prefetch(next[0] + 8 * word);
            __builtin_prefetch(next[0] + 8 * word + 64);
            __builtin_prefetch(next[1] + 8 * word);
            __builtin_prefetch(next[1] + 8 * word + 64);
        }
        plane high = plane_load(p + word, q + word);
        plane middle = plane_load(p + word + PLANE_STRIDE, q + word + PLANE_STRIDE);
        plane low = plane_load(p + word + 2 * PLANE_STRIDE, q + word + 2 * PLANE_STRIDE);
        uint8_t *at = at_least + 512 * d;
        *plane_at(at, 1) = high | middle | low;
        *plane_at(at, 2) = high | middle;
        *plane_at(at, 3) = high | (middle & low);
        *plane_at(at, 4) = high;
        *plane_at(at, 5) = high & (middle | low);
        *plane_at(at, 6) = high & middle;
        *plane_at(at, 7) = high & middle & low;
    }
}

static inline plane plane_of(const uint8_t *bitmaps, uint16_t offset) {
    return *(const plane *)(const void *)(bitmaps + offset);
}

/* Boxes of `ranges` ranges each; a constant where this is called, so that the inner loop has no branches. */
static inline __attribute__((always_inline)) void plane_boxes(const uint16_t *code, uint32_t ranges,
                                                              const uint16_t *boxes, uint32_t count,
                                                              const uint8_t *at_least, uint8_t *votes) {
    for (uint32_t i = 0; i < count; i++) {
        const uint16_t *box = code + (size_t)boxes[i] * (1 + 2 * ranges);
        plane inside = plane_of(at_least, BW_PLANES_ALL);
        for (uint32_t r = 0; r < ranges; r++) {
            inside = INSIDE(inside, plane_of(at_least, box[1 + 2 * r]), plane_of(at_least, box[2 + 2 * r]));
        }
        *plane_at(votes, box[0]) |= inside;
    }
}

#define FULL_ADD(sum, a, b, carry)                                                                           \
    do {                                                                                                     \
        plane before = (sum), one = (a), other = (b);                                                        \
        (carry) = (plane)MAJORITY(before, one, other);                                                       \
        (sum) = before ^ one ^ other;                                                                        \
    } while (0)

/* Bits of the rows that enough of `groups` times 8 estimators vote for. */
static inline plane plane_tally(uint8_t *votes, uint32_t groups, uint32_t digits, uint32_t threshold) {
    plane none = {0};
    plane count[BW_VOTE_DIGITS];
    for (uint32_t i = 0; i < BW_VOTE_DIGITS; i++) {
        count[i] = none;
    }
    plane ones = none, twos = none, fours = none;
    for (uint32_t g = 0; g < groups; g++, votes += 512) {
        plane a, b, c, d, carry;
        FULL_ADD(ones, *plane_at(votes, 0), *plane_at(votes, 1), a);
        FULL_ADD(ones, *plane_at(votes, 2), *plane_at(votes, 3), b);
        FULL_ADD(twos, a, b, c);
        FULL_ADD(ones, *plane_at(votes, 4), *plane_at(votes, 5), a);
        FULL_ADD(ones, *plane_at(votes, 6), *plane_at(votes, 7), b);
        FULL_ADD(twos, a, b, d);
        FULL_ADD(fours, c, d, carry);
        for (uint32_t i = 3; i < digits; i++) {
            plane before = count[i];
            count[i] = before ^ carry;
            carry &= before;
        }
    }
    count[0] = ones;
    count[1] = twos;
    count[2] = fours;
    if (threshold >> digits) {
        return none;
    }
    plane reached = ~none;
    for (uint32_t i = 0; i < digits; i++) {
        reached = threshold >> i & 1 ? reached & count[i] : reached | count[i];
    }
    return reached;
}

static bool planes(const uint64_t *p, const uint64_t *q, const uint8_t *const next[2],
                   const bw_plane_program *program, const uint64_t *overlaps, uint64_t pair, void *work,
                   uint64_t reached[2][4]) {
    uint32_t groups = (program->estimators + 7) / 8;
    uint32_t digits = program->estimators > 7 ? 32 - (uint32_t)__builtin_clz(program->estimators) : 3;
    uint8_t *at_least = work, *votes = at_least + (size_t)64 * (BW_PLANES_NONE + 1);
    uint16_t *boxes = (uint16_t *)(void *)(votes + (size_t)512 * groups);
    uint32_t counts[BW_PLANE_CLASSES];
    uint64_t any = 0;
    for (uint32_t c = 0, filled = 0; c < BW_PLANE_CLASSES; c++) {
        uint32_t first = program->first_box[c], n = program->first_box[c + 1] - first;
        counts[c] = n > 0 ? PLANE_SELECT(overlaps + first, n, pair, boxes + filled) : 0;
        filled += counts[c];
    }
    for (unsigned pass = 0; pass < PLANE_PASSES; pass++) {
        const uint64_t *from = pass * PLANE_WORDS < PLANE_STRIDE ? p : q;
        from += pass * PLANE_WORDS % PLANE_STRIDE;
        const plane none = {0};
        *plane_at(at_least, BW_PLANES_ALL) = ~none;
        *plane_at(at_least, BW_PLANES_NONE) = none;
        plane_expand(from, q, pass == 0 ? next : NULL, program->dims, at_least);
        for (uint32_t e = 0; e < 8 * groups; e++) {
            *plane_at(votes, e) = none;
        }
        const uint16_t *list = boxes;
#define CLASS(number, ranges)                                                                                \
    plane_boxes(program->code[number], ranges, list, counts[number], at_least, votes);                       \
    list += counts[number]
        CLASS(0, 0);
        CLASS(1, 1);
        CLASS(2, 2);
        CLASS(3, 3);
        CLASS(4, 4);
        CLASS(5, 5);
        CLASS(6, 6);
        CLASS(7, 8);
        CLASS(8, 12);
        CLASS(9, 16);
        CLASS(10, 32);
#undef CLASS
        plane found = plane_tally(votes, groups, digits, program->threshold);
        memcpy(&reached[0][0] + pass * PLANE_WORDS, &found, sizeof found);
    }
    for (int word = 0; word < 4; word++) {
        any |= reached[0][word] | reached[1][word];
    }
    return any != 0;
}
