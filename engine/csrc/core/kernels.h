/* kernels.h - the inner loops, one table an instruction set. kernels_generic.c is the oracle of the others.
 */
#ifndef BW_KERNELS_H
#define BW_KERNELS_H

#include "base.h"

/* A conjunction of ranges in the form that kernels take: parallel arrays, `count` entries, lo <= hi in each.
 */
typedef struct bw_ranges {
    uint32_t count; /* 0: every row is inside */
    uint8_t dim[BW_DIMS];
    uint8_t lo[BW_DIMS];
    uint8_t hi[BW_DIMS];
} bw_ranges;

typedef struct bw_kernels {
    const char *name;

    /* Rows of one block inside a box. Column of dimension d starts at block + d * stride, 256 values.
     * Bit r of mask[r / 64] is row r. Returns whether any bit is set. Ranges are tested in the order given.
     */
    bool (*box)(const uint8_t *block, size_t stride, const bw_ranges *ranges, uint64_t mask[4]);

    /* Zone test of 64 blocks, b .. b + 63: zone_min + d * zone_stride + b and zone_max likewise. Bit i of
     * *overlaps: block b + i may hold rows of the box; of *contained: it may, and all its rows are inside.
     * What the bits of places past the last block are is left open. */
    void (*zones)(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                  const bw_ranges *ranges, uint64_t *overlaps, uint64_t *contained);

    /* Squared distances from `query` of the 256 rows of a block. */
    void (*distances)(const uint8_t *block, size_t stride, const uint8_t query[BW_DIMS],
                      uint32_t distances[256]);

    /* Lower bounds of the squared distance from `query` to any point in the zone boxes of 64 blocks, b .. b
     * + 63. */
    void (*zone_distances)(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                           const uint8_t query[BW_DIMS], uint32_t distances[64]);

    /* scores[r] = constant + sum over d of table[d * 256 + value of row r in d], for the 256 rows of a block.
     */
    void (*scores)(const uint8_t *block, size_t stride, const int64_t *table, int64_t constant,
                   int64_t scores[256]);

    uint32_t (*crc32c)(uint32_t crc, const void *data, size_t bytes);
} bw_kernels;

const bw_kernels *
bw_kernels_get(void); /* the table in use; chosen on first use unless bw_isa_select came before */

/* One function a file; NULL where the compiler or the platform has no such instruction set. */
const bw_kernels *bw_kernels_generic(void);
const bw_kernels *bw_kernels_avx2(void);
const bw_kernels *bw_kernels_avx512(void);
const bw_kernels *bw_kernels_neon(void);

/* What several tables share: the scores, and the checksum by SSE4.2's instruction.
 */
void bw_scores_generic(const uint8_t *block, size_t stride, const int64_t *table, int64_t constant,
                       int64_t scores[256]);
uint32_t bw_crc32c_sse42(uint32_t crc, const void *data, size_t bytes); /* kernels_avx2.c */

/* cpu.c */
bool bw_cpu_has_avx2(void);
bool bw_cpu_has_avx512(void); /* F, BW, VL, and the operating system saves the registers */
bool bw_cpu_has_neon(void);

#endif
