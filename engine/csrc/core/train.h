/* train.h - what the entry in train.c hands to a learner, and what learners of boxes share. */
#ifndef BW_TRAIN_H
#define BW_TRAIN_H

#include "base.h"
#include "model.h"

/* Labels as codes, n * 32 bytes each, in the order given; all borrowed. There is at least one positive or a
 * query; branch and ensemble get at least one positive, and at least one row in negatives and randoms. */
typedef struct bw_training {
    const uint8_t *positives, *negatives, *randoms; /* randoms: rows of the collection */
    size_t n_positives, n_negatives, n_randoms;
    const bw_train_options *options; /* checked */
    const char *quantizer;           /* fingerprint for the model; NULL: any */
    double rows_each;                /* rows of the collection that a random one stands for */
    /* With rerank fine codes, 128 bytes each; fine(context, i) is that of random row i. NULL without. */
    const uint8_t *positives_fine, *negatives_fine;
    const uint8_t *(*fine)(const void *context, size_t row);
    const void *fine_context;
    const char *fine_quantizer;
    /* The collection's rows whose score, without its threshold, is at least `least`; NULL: nobody can count.
     */
    int32_t (*count)(const void *context, const bw_score *score, int64_t least, double *rows,
                     bw_error *error);
    const void *count_context;
    const int64_t *ids;    /* of the positives, for messages; NULL: their places */
    bw_train_stats *stats; /* learners add what they know */
} bw_training;

/* How many estimators the options ask for: 1 but for an ensemble. */
uint32_t bw_training_estimators(const bw_training *training);

/* BW_CANCELLED when the options' flag says so; learners look between boxes. */
int32_t bw_training_cancelled(const bw_training *training, bw_error *error);

/* The model of learners that vote with boxes: one vote an estimator, a majority of them (estimators / 2 + 1),
 * score = votes * 2^21 - squared distance to the mean positive. first_box and boxes as in bw_model; copied.
 */
int32_t bw_training_vote(const bw_training *training, const uint32_t *first_box, const bw_ranges *boxes,
                         bw_model **model, bw_error *error);

/* a / b for 0 <= a, 0 < b, a + b < 2^53, faster than integers divide: exact, as the true quotient is at
 * least 1 / b below the next integer, which is more than a double's rounding here. */
static inline int64_t bw_quotient(int64_t a, int64_t b) {
    return (int64_t)((double)a / (double)b);
}

#define BW_PRIOR_ROWS 512

/* The variance of codes inside small neighbourhoods, in 1/256, by n <= BW_PRIOR_ROWS rows of a collection:
 * half the mean squared difference of each to its 4 nearest ones, at least 256; 16384 where n < 2. */
void bw_training_prior(const uint8_t *const *codes, size_t n, int64_t prior[BW_DIMS]);

/* The learners. *model is owned by the caller. Branch and ensemble with a prior, and as published. */
int32_t bw_train_branch(const bw_training *training, bw_model **model, bw_error *error);
int32_t bw_train_paper(const bw_training *training, bw_model **model, bw_error *error);
int32_t bw_train_cover(const bw_training *training, bw_model **model, bw_error *error);

#endif
