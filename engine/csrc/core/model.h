/* model.h - models in memory: flat arrays, checked once when made. */
#ifndef BW_MODEL_H
#define BW_MODEL_H

#include "kernels.h"

/* Limits that keep every score an exact integer below 2^53, so that an engine that sums in doubles agrees to
 * the bit. Fine codes have four times the dimensions and coefficients a quarter as large. */
#define BW_MAX_TERMS 8
#define BW_MAX_LINEAR ((int64_t)1 << 38)
#define BW_MAX_SQUARE ((int64_t)1 << 30)
#define BW_MAX_FINE_LINEAR (BW_MAX_LINEAR / 4)
#define BW_MAX_FINE_SQUARE (BW_MAX_SQUARE / 4)
#define BW_MAX_VOTE_SCORE ((int64_t)1 << 40)
#define BW_MAX_CONSTANT ((int64_t)1 << 51)
#define BW_MAX_SHIFT 40
#define BW_MAX_JSON_BYTES ((size_t)64 << 20)

/* constant + sum over dims of (linear[d] + square[d] * x) * x */
typedef struct bw_term {
    int64_t linear[BW_FINE_DIMS];
    int64_t square[BW_FINE_DIMS];
    int64_t constant;
} bw_term;

/* The largest of the terms, plus what the votes add: of codes, whose terms have BW_DIMS dimensions and zeros
 * behind, or of fine codes, whose score takes no votes. */
typedef struct bw_score {
    uint32_t terms; /* 1 .. BW_MAX_TERMS, no two the same */
    int32_t shift;  /* the score for people is value / 2^shift */
    int64_t votes;  /* what one vote adds */
    int64_t threshold;
    bool has_threshold;
    bw_term term[BW_MAX_TERMS];
} bw_score;

struct bw_model {
    char learner[16];
    char quantizer[BW_FINGERPRINT_BYTES];
    uint32_t estimators;
    uint32_t threshold;
    uint32_t *first_box; /* estimators + 1 entries: boxes before each estimator */
    bw_ranges *boxes;    /* first_box[estimators] entries; ranges ascending by dim, each dim once, lo <= hi */
    bw_score *score;     /* NULL: the votes are the score */
    bw_score *fine;      /* of fine codes; NULL: none */
    char fine_quantizer[BW_FINGERPRINT_BYTES]; /* of the fine codes that `fine` is for; empty: any */
    char *training; /* JSON object with what the learner wants to remember, or NULL */
};

static inline uint32_t bw_model_boxes(const bw_model *model) {
    return model->first_box[model->estimators];
}

/* Makes a checked model out of parts, copying them; the one way in for learners and the JSON reader alike.
 * Of equal terms one is kept. quantizer, score, fine_quantizer, fine and training may be NULL. */
int32_t bw_model_new(const char *learner, const char *quantizer, uint32_t estimators,
                     const uint32_t *first_box, const bw_ranges *boxes, uint32_t threshold,
                     const bw_score *score, const char *fine_quantizer, const bw_score *fine,
                     const char *training, bw_model **model, bw_error *error);
int32_t bw_model_copy(const bw_model *model, bw_model **copy, bw_error *error);

/* The largest term of a score on n values, value d at code[d * stride]; n is BW_DIMS or BW_FINE_DIMS. */
int64_t bw_score_terms(const bw_score *score, uint32_t n, const uint8_t *code, size_t stride);

#endif
