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

/* A model's boxes on the bins of one segment, for the plane kernel. A range of values becomes a range of bins
 * that holds it; those that then hold every bin are left out. Boxes are grouped into classes by their number
 * of ranges, rounded up to that of the class, so that the kernel's inner loops have fixed lengths. */
#define BW_PLANE_CLASSES 11
#define BW_PLANES_ALL 0    /* a bitmap of ones: bin >= 0 */
#define BW_PLANES_NONE 256 /* a bitmap of zeros: bin >= 8 */
#define BW_VOTE_DIGITS 11  /* votes of up to 1,024 estimators in binary */
typedef struct bw_plane_program {
    uint32_t dims; /* dimensions that the boxes look at, as bits */
    uint32_t estimators;
    uint32_t threshold;
    uint32_t first_box[BW_PLANE_CLASSES + 1]; /* boxes before each class */
    /* Of each class, for each of its boxes: the estimator, then for each range two bitmaps, bin >= lo and bin
     * >= hi + 1: 64 times 8 * dimension + bin, or times the two above. */
    uint16_t *code[BW_PLANE_CLASSES];
} bw_plane_program;

extern const uint8_t bw_plane_class_ranges[BW_PLANE_CLASSES]; /* of a box of that class */

/* What the plane kernel works in: bitmaps of 64 bytes and votes of estimators, in eights, likewise; then the
 * numbers of the boxes to try. */
#define BW_PLANES_WORK(estimators, boxes)                                                                    \
    (64 * ((size_t)BW_PLANES_NONE + 1 + ((size_t)(estimators) + 7) / 8 * 8) + 2 * ((size_t)(boxes) + 16))

/* A quadratic function of codes: the sum over dimensions dim[i] of (linear[i] + square[i] * y) * y, where
 * y = value - centre[i]. The arrays stand in the order in which dimensions are added, eight at a time.
 * |linear[i] + square[i] * y| <= 32,767 for every value, so that 16 bits hold it, and 32 bits any sum. */
#define BW_GROUPS (BW_DIMS / 8)
typedef struct bw_quadratic {
    uint32_t groups; /* 1 .. BW_GROUPS; dimensions behind them add nothing */
    uint8_t dim[BW_DIMS];
    uint8_t best[BW_DIMS]; /* the value that adds most, where square[i] <= 0 */
    int16_t centre[BW_DIMS];
    int16_t linear[BW_DIMS];
    int16_t square[BW_DIMS];
} bw_quadratic;

/* The same of fine codes, in the order of dimensions. */
typedef struct bw_fine_quadratic {
    int16_t centre[BW_FINE_DIMS];
    int16_t linear[BW_FINE_DIMS];
    int16_t square[BW_FINE_DIMS];
} bw_fine_quadratic;

#define BW_GATHER_STRIDE (BW_BLOCK_ROWS + 64) /* columns of 256 gathered rows, and room behind them */

typedef struct bw_kernels {
    const char *name;

    /* Rows of one block inside a box, of those in `wanted`. Column of dimension d starts at block + d *
     * stride, 256 values. Bit r of mask[r / 64] is row r. Returns whether any bit is set. Ranges are tested
     * in the order given. */
    bool (*box)(const uint8_t *block, size_t stride, const bw_ranges *ranges, const uint64_t wanted[4],
                uint64_t mask[4]);

    /* Rows of two blocks that may have `threshold` votes as far as bins tell: p and q are their planes
     * (segment.h), reached[0] and [1] get the rows; p may be q. Boxes are tried whose word in `overlaps` (for
     * each box of the program) has any bit of `pair`; a box without rows in both blocks may be left out.
     * `next`, unless NULL, are the planes of the two blocks that will come next. `work`: BW_PLANES_WORK
     * bytes, 64-byte aligned. Returns whether any bit is set. */
    bool (*planes)(const uint64_t *p, const uint64_t *q, const uint8_t *const next[2],
                   const bw_plane_program *program, const uint64_t *overlaps, uint64_t pair, void *work,
                   uint64_t reached[2][4]);

    /* Appends rows of a block, of the 64 whose first is at `from`: for each dimension d in `dims` their
     * values at from + d * stride go to to + d * BW_GATHER_STRIDE, those of set bits of `rows` side by side.
     * Up to 64 bytes may be written there. */
    void (*gather)(const uint8_t *from, size_t stride, uint32_t dims, uint64_t rows, uint8_t *to);

    /* Zone test of 64 blocks, b .. b + 63: zone_min + d * zone_stride + b and zone_max likewise. Bit i of
     * *overlaps: block b + i may hold rows of the box; of *contained: it may, and all its rows are inside.
     * What the bits of places past the last block are is left open. */
    void (*zones)(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                  const bw_ranges *ranges, uint64_t *overlaps, uint64_t *contained);

    /* Squared distances from `query` of 64 points: dimension d of point i at points + d * stride + i. */
    void (*distances)(const uint8_t *points, size_t stride, const uint8_t query[BW_DIMS],
                      uint32_t distances[64]);

    /* Bit i: point i of the 64 is at most `limit` away, and distances[i] is its squared distance; the others'
     * distances are left open. Dimensions are added in the order given, each of the 32 once, and the rest is
     * left unread when all 64 points are too far away already. */
    uint64_t (*near)(const uint8_t *points, size_t stride, const uint8_t query[BW_DIMS],
                     const uint8_t order[BW_DIMS], uint32_t limit, uint32_t distances[64]);

    /* Lower bounds of the squared distance from `query` to any point in the zone boxes of 64 blocks, b .. b
     * + 63. */
    void (*zone_distances)(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                           const uint8_t query[BW_DIMS], uint32_t distances[64]);

    /* Bit i: the quadratic is at least least[q->groups - 1] at point i of the 64, and sums[i] is its value;
     * the others' sums are left open. A point may be given up whose sum is below least[g] after group g. */
    uint64_t (*quadratic)(const uint8_t *points, size_t stride, const bw_quadratic *q,
                          const int32_t least[BW_GROUPS], int32_t sums[64]);

    /* Upper bounds for any point in the zone boxes of 64 blocks, b .. b + 63: most[64 * g + i] is what groups
     * g and later ones add at most in block b + i. Those of places past the last block are left open. */
    void (*quadratic_zones)(const uint8_t *zone_min, const uint8_t *zone_max, size_t zone_stride, size_t b,
                            const bw_quadratic *q, int32_t most[BW_GROUPS * 64]);

    /* The quadratic at one fine code. */
    int32_t (*fine)(const uint8_t code[BW_FINE_DIMS], const bw_fine_quadratic *q);

    /* ---- learning: kernels_learn.h. Doubles, every sum in the order given, over rows or over dimensions
     * ---- */

    /* p[i] = 1 / (1 + e^-x), x = b[dims] + the sum over d of column d's value i times b[d], cut to -30 .. 30.
     * Column d starts at columns + d * stride. */
    void (*logistics)(const double *columns, size_t stride, size_t n, const double *b, uint32_t dims,
                      double *p);
    /* The sum over rows of factors[i] times row i, `stride` entries, a multiple of 8. */
    void (*gradients)(const double *rows, uint32_t stride, size_t n, const double *factors, double *gradient);
    /* hessian[d][j] for d <= dims and j <= d: the sum over rows of (curvatures[i] * row[d]) * row[j]. Entries
     * above the diagonal are left open; lines of `stride` entries. */
    void (*hessians)(const double *rows, uint32_t stride, size_t n, const double *curvatures, uint32_t dims,
                     double *hessian);
    /* constant + the sum over d of (linear[d] + square[d] * x) * x for codes in columns; and the same in
     * integers modulo 2^32. */
    void (*values)(const uint8_t *columns, size_t stride, size_t n, uint32_t dims, const double *linear,
                   const double *square, double constant, double *to);
    void (*whole_values)(const uint8_t *columns, size_t stride, size_t n, uint32_t dims,
                         const int32_t *linear, const int32_t *square, int32_t constant, int32_t *to);

    uint32_t (*crc32c)(uint32_t crc, const void *data, size_t bytes);
} bw_kernels;

const bw_kernels *
bw_kernels_get(void); /* the table in use; chosen on first use unless bw_isa_select came before */

/* One function a file; NULL where the compiler or the platform has no such instruction set. */
const bw_kernels *bw_kernels_generic(void);
const bw_kernels *bw_kernels_avx2(void);
const bw_kernels *bw_kernels_avx512(void);
const bw_kernels *bw_kernels_neon(void);

/* What several tables share: gathering, and the checksum by SSE4.2's instruction. */
void bw_gather_generic(const uint8_t *from, size_t stride, uint32_t dims, uint64_t rows, uint8_t *to);
uint32_t bw_crc32c_sse42(uint32_t crc, const void *data, size_t bytes); /* kernels_avx2.c */

/* cpu.c */
bool bw_cpu_has_avx2(void);
bool bw_cpu_has_avx512(void); /* F, BW, VL, and the operating system saves the registers */
bool bw_cpu_has_vbmi2(void);  /* bytes of a register packed by a mask */
bool bw_cpu_has_neon(void);

#endif
