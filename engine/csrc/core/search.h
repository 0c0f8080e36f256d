/* search.h - a model made ready to run, samples and estimates, and searches whose path is chosen by hand.
 * What the files search_*.c and plan.c share. */
#ifndef BW_SEARCH_H
#define BW_SEARCH_H

#include "index.h"
#include "kernels.h"
#include "model.h"

#define BW_GROUP_BLOCKS 64 /* blocks whose zones are tested at once: one bit each of a uint64_t */

/* ---- samples: search_box.c ---- */

/* Blocks of the samples that the segments carry, each segment's evenly spaced. They belong to the index. */
typedef struct bw_sample_block {
    const uint8_t *codes; /* 256 * 32, stride 256 */
    uint32_t rows;
    uint32_t segment;
    uint32_t found;   /* rows that bw_sample_total is asked about */
    uint64_t live[4]; /* the rows that are alive, as bits */
} bw_sample_block;

typedef struct bw_sample {
    uint32_t blocks;
    bw_sample_block *block; /* owned: bw_free */
} bw_sample;

/* At most `most` blocks, > 0; the same index gives the same ones. */
int32_t bw_sample_draw(const bw_index *index, uint32_t most, bw_sample *sample, bw_error *error);
/* Which row of its segment a block's row r is. */
uint32_t bw_sample_row(const bw_index *index, const bw_sample_block *block, uint32_t r);
/* How many rows of the index the blocks' `found` stand for: exact where the sample holds all rows. */
double bw_sample_total(const bw_index *index, const bw_sample *sample);
/* The same for the live rows in the union of n boxes, which it counts. */
double bw_sample_estimate(const bw_index *index, bw_sample *sample, const bw_kernels *kernels,
                          const bw_ranges *boxes, uint32_t n);

/* ---- programs: search_box.c ---- */

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

int32_t bw_program_make(const bw_index *index, const bw_model *model, const bw_kernels *kernels,
                        bw_program *program, bw_error *error);
void bw_program_free(bw_program *program);

static inline uint32_t bw_program_boxes(const bw_program *program) {
    return program->first_box[program->estimators];
}

/* Zone tests of one estimator's n boxes on blocks b .. b + 63. overlaps[i]: blocks that may hold rows of box
 * i; *alive: of any of them; *certain: blocks that lie in one whole. Bits of places past the last block are
 * left open. */
void bw_boxes_zones(const bw_segment *segment, const bw_kernels *kernels, uint32_t b, const bw_ranges *boxes,
                    uint32_t n, uint64_t *overlaps, uint64_t *alive, uint64_t *certain);

/* ---- plane programs: search_planes.c ---- */

/* A program on the bins of one segment, and what the plane kernel needs to run it on blocks of that segment.
 */
typedef struct bw_planes {
    bw_plane_program program;
    uint32_t boxes;
    uint32_t *order;    /* box of the bw_program, for each box in class order */
    uint16_t *code;     /* room for all classes */
    uint64_t *overlaps; /* of each box in class order: blocks of the group that may hold rows of it */
    void *work;
} bw_planes;

int32_t bw_planes_new(const bw_program *program, bw_planes *planes, bw_error *error);
void bw_planes_free(bw_planes *planes);
/* Makes the plane program for a segment. */
void bw_planes_set(bw_planes *planes, const bw_program *program, uint32_t threshold,
                   const bw_segment *segment);
/* Takes over the zone tests of a group: overlaps of the bw_program's boxes. */
void bw_planes_group(bw_planes *planes, const uint64_t *overlaps);
static inline const uint64_t *bw_segment_planes(const bw_segment *segment, uint32_t block) {
    return segment->planes + (size_t)block * (BW_BLOCK_PLANES_BYTES / 8);
}

/* ---- scores: search_score.c ---- */

/* A term of a score for the kernels: base + 2^shift * q is nowhere less than it, and with shift 0 it is it.
 */
typedef struct bw_scorer_term {
    bw_quadratic q;
    int64_t base;
    uint32_t shift;
} bw_scorer_term;

typedef struct bw_scorer {
    uint32_t terms;
    bool exact; /* every shift is 0 */
    bw_scorer_term term[BW_MAX_TERMS];
} bw_scorer;

typedef struct bw_fine_scorer {
    uint32_t terms;
    bool exact;
    uint32_t shift[BW_MAX_TERMS];
    int64_t base[BW_MAX_TERMS];
    int32_t least[BW_MAX_TERMS]; /* what the terms' sums must reach */
    bw_fine_quadratic q[BW_MAX_TERMS];
} bw_fine_scorer;

/* What zones say of the scores of 64 blocks. */
typedef struct bw_score_group {
    uint64_t alive[BW_MAX_TERMS]; /* blocks in which the term may reach the threshold */
    int32_t least[BW_MAX_TERMS][BW_GROUP_BLOCKS];
    int32_t most[BW_MAX_TERMS][BW_GROUPS * BW_GROUP_BLOCKS];
} bw_score_group;

/* The order in which dimensions are added is that of what they tell rows apart by in the largest segment. */
void bw_scorer_make(const bw_index *index, const bw_score *score, bw_scorer *scorer);
void bw_fine_scorer_make(const bw_score *score, bw_fine_scorer *scorer);
/* What a term's sum must at least be where the score reaches the threshold. */
int32_t bw_least_sum(int64_t threshold, int64_t base, uint32_t shift);

/* Those of `blocks`, bits of the 64 blocks from `first` on, in which a row's score (without votes) may reach
 * threshold[i]; `same`: threshold[0] in all of them. */
uint64_t bw_scorer_zones(const bw_scorer *scorer, const bw_kernels *kernels, const bw_segment *segment,
                         uint32_t first, const int64_t *threshold, bool same, uint64_t blocks,
                         bw_score_group *group);

/* Leaves in `rows` those of 256 whose score may reach the threshold that `group` has for its block number
 * `bit`; all of them where group is NULL. Where the scorer is exact these do reach it, and scores[r], unless
 * NULL, is the score of row r without votes. Returns whether any is left. */
bool bw_scorer_rows(const bw_scorer *scorer, const bw_kernels *kernels, const uint8_t *codes, size_t stride,
                    const bw_score_group *group, uint32_t bit, uint64_t rows[4], int64_t scores[256]);

/* The fine score of one row. Whether it reaches the score's threshold, if there is one; only where it does is
 * *value it. */
bool bw_fine_score(const bw_fine_scorer *scorer, const bw_score *score, const bw_kernels *kernels,
                   const uint8_t code[BW_FINE_DIMS], int64_t *value);

/* ---- paths and estimates: search_votes.c ---- */

/* How the blocks that zones leave open are settled. All give the same rows. */
typedef enum bw_path {
    BW_PATH_CHOOSE, /* by estimated cost */
    BW_PATH_ZONES,  /* zones, then codes */
    BW_PATH_PLANES, /* zones, then planes, then the codes of candidate rows */
    BW_PATH_SCAN,   /* codes of every block */
    BW_PATH_SCORE,  /* zones, then scores by codes, then boxes of the rows that these leave; without a score
                       that cuts it is BW_PATH_ZONES */
    BW_PATHS
} bw_path;

const char *bw_path_name(bw_path path);

typedef struct bw_estimate {
    bw_path path;       /* chosen, never BW_PATH_CHOOSE */
    double blocks;      /* whose planes or codes will be read */
    double nanoseconds; /* one thread of the computer that the constants were measured on */
} bw_estimate;

/* bw_search_open with the path given; tests force one. */
int32_t bw_search_open_path(const bw_index *index, const bw_model *model, uint32_t flags, bw_path path,
                            bw_search **search, bw_error *error);
int32_t bw_search_run_path(const bw_index *index, const bw_model *model, uint32_t flags, bw_path path,
                           uint32_t threads, const volatile int32_t *cancel, bw_rows **rows, bw_stats *stats,
                           bw_estimate *estimate, bw_error *error);

/* Batches of this search get places in `ids`: the row's number in its segment, after 256 for each block of
 * the segments before. To be called before the first bw_search_next. */
void bw_search_give_places(bw_search *search);

/* search_knn.c. What approximate k-NN must spend on a segment for each k and recall (docs/FORMAT.md,
 * "Recall"), measured with rows of its own as queries; segment->recall is not read. The same segment gives
 * the same numbers, whatever the threads (0: one a core). `progress` may be NULL. */
int32_t bw_knn_calibrate(const bw_segment *segment, uint32_t threads, bw_recall *recall, bw_progress progress,
                         void *context, bw_error *error);

#endif
