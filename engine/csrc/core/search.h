/* search.h - a model made ready to run, and a sample of an index; shared by search_box.c, search_votes.c and
 * plan.c. */
#ifndef BW_SEARCH_H
#define BW_SEARCH_H

#include "index.h"
#include "model.h"

#define BW_GROUP_BLOCKS 64 /* blocks whose zones are tested at once: one bit each of a uint64_t */

/* Rows spread evenly over an index, in blocks for the byte kernels: block s at codes + s * 256 * 32, stride
 * 256. The same index gives the same sample. */
typedef struct bw_sample {
    uint32_t rows;
    uint32_t blocks;
    uint8_t *codes; /* owned; values past the last row are zero */
} bw_sample;

/* min(rows, rows of the index) rows; rows <= 4,096. Freed by bw_free(sample->codes). */
int32_t bw_sample_draw(const bw_index *index, uint32_t rows, bw_sample *sample, bw_error *error);
/* How many of them lie in the union of n boxes. */
uint32_t bw_sample_count(const bw_sample *sample, const bw_kernels *kernels, const bw_ranges *boxes,
                         uint32_t n);

/* The estimators of a model in the order in which they are tried: those that the fewest rows of a sample are
 * inside come first, so that a block's fate is known early; so do the rarest ranges of a box. Estimators
 * without boxes, which never vote, and ranges that hold every value are left out. The order changes times,
 * never answers. */
typedef struct bw_program {
    uint32_t estimators;
    uint32_t *first_box; /* estimators + 1 entries */
    bw_ranges *boxes;
    uint32_t *box_dims; /* a box's dimensions as bits */
    uint32_t dims;      /* of all boxes */
} bw_program;

int32_t bw_program_make(const bw_model *model, const bw_sample *sample, const bw_kernels *kernels,
                        bw_program *program, bw_error *error);
void bw_program_free(bw_program *program);

/* Zone tests of one estimator's n boxes on blocks b .. b + 63. overlaps[i]: blocks that may hold rows of box
 * i; *alive: of any of them; *certain: blocks that lie in one whole. Bits of places past the last block are
 * left open. */
void bw_boxes_zones(const bw_segment *segment, const bw_kernels *kernels, uint32_t b, const bw_ranges *boxes,
                    uint32_t n, uint64_t *overlaps, uint64_t *alive, uint64_t *certain);

/* The rows of one block in the union of n boxes, of which those count whose `overlaps` has the bit. Returns
 * the dimensions of the boxes that were tried, as bits. */
uint32_t bw_boxes_scan(const uint8_t *block, size_t stride, const bw_kernels *kernels, const bw_ranges *boxes,
                       const uint32_t *box_dims, uint32_t n, const uint64_t *overlaps, uint32_t bit,
                       uint64_t mask[4]);

#endif
