/* model.h - models in memory: flat arrays, checked once when made. */
#ifndef BW_MODEL_H
#define BW_MODEL_H

#include "kernels.h"

/* Limits that keep every score an exact integer below 2^53, so that an engine that sums in doubles agrees to
 * the bit. */
#define BW_MAX_LINEAR ((int64_t)1 << 38)
#define BW_MAX_SQUARE ((int64_t)1 << 30)
#define BW_MAX_VOTE_SCORE ((int64_t)1 << 40)
#define BW_MAX_CONSTANT ((int64_t)1 << 51)
#define BW_MAX_SHIFT 40
#define BW_MAX_JSON_BYTES ((size_t)64 << 20)

typedef struct bw_score {
    int64_t linear[BW_DIMS];
    int64_t square[BW_DIMS];
    int64_t constant;
    int64_t votes; /* what one vote adds */
    int64_t threshold;
    int32_t shift; /* the score for people is value / 2^shift */
    bool has_threshold;
} bw_score;

struct bw_model {
    char learner[16];
    char quantizer[BW_FINGERPRINT_BYTES];
    uint32_t estimators;
    uint32_t threshold;
    uint32_t *first_box; /* estimators + 1 entries: boxes before each estimator */
    bw_ranges *boxes;    /* first_box[estimators] entries; ranges ascending by dim, each dim once, lo <= hi */
    bool has_score;
    bw_score score;
    char *training; /* JSON object with what the learner wants to remember, or NULL */
};

static inline uint32_t bw_model_boxes(const bw_model *model) {
    return model->first_box[model->estimators];
}

/* Makes a checked model out of parts, copying them; the one way in for learners and the JSON reader alike.
 * score and training may be NULL. */
int32_t bw_model_new(const char *learner, const char *quantizer, uint32_t estimators,
                     const uint32_t *first_box, const bw_ranges *boxes, uint32_t threshold,
                     const bw_score *score, const char *training, bw_model **model, bw_error *error);
int32_t bw_model_copy(const bw_model *model, bw_model **copy, bw_error *error);

/* Score per vote and per code value as a table for bw_kernels.scores: table[d * 256 + x]. */
void bw_score_table(const bw_score *score, int64_t table[BW_DIMS * 256]);

#endif
