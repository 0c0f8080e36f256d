/* model.c - models: checking, JSON, SQL, and the plain evaluation that every fast path is compared with. */
#include "model.h"

#include "json.h"

#include <stdio.h>
#include <string.h>

#define MAX_TRAINING_BYTES 65536
#define MAX_SCORE ((int64_t)1 << 53)

/* ---- checking and copying ---- */

static bool is_learner_name(const char *name) {
    size_t length = strlen(name);
    return length >= 1 && length <= 15 && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") == length;
}

static bool is_fingerprint(const char *text) {
    size_t length = strlen(text);
    for (size_t i = 0; i < length; i++) {
        if (text[i] < 0x20 || text[i] > 0x7E) {
            return false;
        }
    }
    return length < BW_FINGERPRINT_BYTES;
}

static int32_t check_within(const char *what, int64_t value, int64_t low, int64_t high, bw_error *error) {
    if (value < low || value > high) {
        return bw_fail(error, BW_INVALID, "model: %s: %lld is out of range %lld..%lld", what,
                       (long long)value, (long long)low, (long long)high);
    }
    return BW_OK;
}

/* The limits of the coefficients alone keep sums of any part of a score's terms, in any order, below 2^53:
 * exact in doubles too. */
_Static_assert(BW_MAX_CONSTANT + BW_MAX_ESTIMATORS * BW_MAX_VOTE_SCORE +
                       BW_DIMS * 255 * (BW_MAX_LINEAR + 255 * BW_MAX_SQUARE) <
                   MAX_SCORE,
               "scores are exact in doubles");
_Static_assert(BW_MAX_CONSTANT + BW_FINE_DIMS * 255 * (BW_MAX_FINE_LINEAR + 255 * BW_MAX_FINE_SQUARE) <
                   MAX_SCORE,
               "fine scores are exact in doubles");

/* What the two scores of a model differ in. */
typedef struct score_kind {
    const char *name; /* of the member */
    uint32_t dims;
    int64_t linear, square; /* largest magnitudes */
} score_kind;

static const score_kind of_codes = {"score", BW_DIMS, BW_MAX_LINEAR, BW_MAX_SQUARE};
static const score_kind of_fine = {"fine", BW_FINE_DIMS, BW_MAX_FINE_LINEAR, BW_MAX_FINE_SQUARE};

static int32_t check_term(const score_kind *kind, const bw_term *term, uint32_t number, bw_error *error) {
    char what[48];
    for (uint32_t d = 0; d < kind->dims; d++) {
        snprintf(what, sizeof what, "%s.terms[%u].linear[%u]", kind->name, number, d);
        int32_t status = check_within(what, term->linear[d], -kind->linear, kind->linear, error);
        if (!status) {
            snprintf(what, sizeof what, "%s.terms[%u].square[%u]", kind->name, number, d);
            status = check_within(what, term->square[d], -kind->square, kind->square, error);
        }
        if (status) {
            return status;
        }
    }
    snprintf(what, sizeof what, "%s.terms[%u].constant", kind->name, number);
    return check_within(what, term->constant, -BW_MAX_CONSTANT, BW_MAX_CONSTANT, error);
}

static int32_t check_score(const score_kind *kind, const bw_score *score, bw_error *error) {
    char what[32];
    if (score->terms < 1 || score->terms > BW_MAX_TERMS) {
        return bw_fail(error, BW_INVALID, "model: %s.terms: there are %u of them; 1 to %d are allowed",
                       kind->name, score->terms, BW_MAX_TERMS);
    }
    int32_t status = BW_OK;
    for (uint32_t t = 0; !status && t < score->terms; t++) {
        status = check_term(kind, &score->term[t], t, error);
    }
    if (!status) {
        snprintf(what, sizeof what, "%s.votes", kind->name);
        status = check_within(what, score->votes, -BW_MAX_VOTE_SCORE, BW_MAX_VOTE_SCORE, error);
    }
    if (!status) {
        snprintf(what, sizeof what, "%s.shift", kind->name);
        status = check_within(what, score->shift, 0, BW_MAX_SHIFT, error);
    }
    return status;
}

/* A copy in which no two terms are the same and all beyond the kind's dimensions is zero. */
static bw_score *copy_score(const score_kind *kind, const bw_score *score) {
    bw_score *copy = bw_alloc_zero(1, sizeof *copy);
    if (!copy) {
        return NULL;
    }
    copy->shift = score->shift;
    copy->votes = score->votes;
    copy->has_threshold = score->has_threshold;
    copy->threshold = score->has_threshold ? score->threshold : 0;
    for (uint32_t t = 0; t < score->terms; t++) {
        bw_term *term = &copy->term[copy->terms];
        memcpy(term->linear, score->term[t].linear, kind->dims * sizeof *term->linear);
        memcpy(term->square, score->term[t].square, kind->dims * sizeof *term->square);
        term->constant = score->term[t].constant;
        bool again = false;
        for (uint32_t other = 0; other < copy->terms && !again; other++) {
            again = memcmp(term, &copy->term[other], sizeof *term) == 0;
        }
        copy->terms += !again;
    }
    if (copy->terms < BW_MAX_TERMS) {
        memset(&copy->term[copy->terms], 0, sizeof copy->term[0]);
    }
    return copy;
}

static int32_t check_boxes(uint32_t estimators, const uint32_t *first_box, const bw_ranges *boxes,
                           bw_error *error) {
    if (estimators > BW_MAX_ESTIMATORS) {
        return bw_fail(error, BW_INVALID, "model: estimators: there are %u of them; at most %d are allowed",
                       estimators, BW_MAX_ESTIMATORS);
    }
    if (first_box[0] != 0) {
        return bw_fail(error, BW_INVALID, "model: estimators: the first one must begin at box 0");
    }
    for (uint32_t e = 0; e < estimators; e++) {
        if (first_box[e + 1] < first_box[e]) {
            return bw_fail(error, BW_INVALID, "model: estimators[%u]: its number of boxes is negative", e);
        }
    }
    if (first_box[estimators] > BW_MAX_BOXES) {
        return bw_fail(error, BW_INVALID, "model: estimators: they have %u boxes; at most %d are allowed",
                       first_box[estimators], BW_MAX_BOXES);
    }
    for (uint32_t e = 0; e < estimators; e++) {
        for (uint32_t b = first_box[e]; b < first_box[e + 1]; b++) {
            uint32_t box = b - first_box[e];
            const bw_ranges *r = &boxes[b];
            if (r->count > BW_DIMS) {
                return bw_fail(error, BW_INVALID, "model: estimators[%u][%u]: more than 32 ranges", e, box);
            }
            for (uint32_t i = 0; i < r->count; i++) {
                if (r->dim[i] >= BW_DIMS) {
                    return bw_fail(error, BW_INVALID,
                                   "model: estimators[%u][%u][%u]: dim %u is out of range 0..31", e, box, i,
                                   r->dim[i]);
                }
                if (i > 0 && r->dim[i] <= r->dim[i - 1]) {
                    return bw_fail(error, BW_INVALID,
                                   "model: estimators[%u][%u][%u]: dim %u is there twice, or out of order", e,
                                   box, i, r->dim[i]);
                }
                if (r->lo[i] > r->hi[i]) {
                    return bw_fail(error, BW_INVALID, "model: estimators[%u][%u][%u]: lo %u is above hi %u",
                                   e, box, i, r->lo[i], r->hi[i]);
                }
            }
        }
    }
    return BW_OK;
}

/* Copies a JSON object without the spaces between its parts. It is checked as a part of a document, so that
 * what is written can be read back: the brackets stand for the document. */
static int32_t copy_training(const char *training, char **copy, bw_error *error) {
    size_t length = strlen(training), n = 0;
    if (length > MAX_TRAINING_BYTES) {
        return bw_fail(error, BW_INVALID, "model: training: %zu bytes; at most 65536 are allowed", length);
    }
    char *text = bw_alloc(length + 3);
    if (!text) {
        return bw_fail_nomem(error, length + 3);
    }
    text[0] = '[';
    memcpy(text + 1, training, length);
    text[length + 1] = ']';
    bw_json json;
    bw_error inner;
    int32_t status = bw_json_parse(text, length + 2, &json, &inner);
    if (status) {
        bw_free(text);
        return bw_fail(error, inner.code, "model: training: %s", inner.message);
    }
    if (json.values[0].count != 1 || json.values[1].kind != BW_JSON_OBJECT) {
        status = bw_fail(error, BW_INVALID, "model: training: expected an object");
    }
    bw_json_free(&json);
    bool in_string = false;
    for (size_t i = 0; i < length; i++) {
        char c = training[i];
        if (c == '"') {
            in_string = !in_string;
        }
        if (in_string || !(c == ' ' || c == '\t' || c == '\n' || c == '\r')) {
            text[n++] = c;
            if (in_string && c == '\\') {
                text[n++] = training[++i];
            }
        }
    }
    text[n] = 0;
    if (status) {
        bw_free(text);
        return status;
    }
    *copy = text;
    return BW_OK;
}

int32_t bw_model_new(const char *learner, const char *quantizer, uint32_t estimators,
                     const uint32_t *first_box, const bw_ranges *boxes, uint32_t threshold,
                     const bw_score *score, const char *fine_quantizer, const bw_score *fine,
                     const char *training, bw_model **model, bw_error *error) {
    if (!is_learner_name(learner)) {
        return bw_fail(error, BW_INVALID,
                       "model: learner: expected a name of 1 to 15 lower-case letters, digits, '_' and '-'");
    }
    quantizer = quantizer ? quantizer : "";
    if (!is_fingerprint(quantizer)) {
        return bw_fail(error, BW_INVALID, "model: quantizer: expected at most 31 bytes of printable ASCII");
    }
    fine_quantizer = fine && fine_quantizer ? fine_quantizer : "";
    if (!is_fingerprint(fine_quantizer)) {
        return bw_fail(error, BW_INVALID,
                       "model: fine.quantizer: expected at most 31 bytes of printable ASCII");
    }
    int32_t status = check_boxes(estimators, first_box, boxes, error);
    if (status) {
        return status;
    }
    if (threshold > estimators) {
        return bw_fail(error, BW_INVALID,
                       "model: threshold: %u is out of range 0..%u, the number of estimators", threshold,
                       estimators);
    }
    status = score ? check_score(&of_codes, score, error) : BW_OK;
    if (!status && fine) {
        status = check_score(&of_fine, fine, error);
    }
    if (!status && fine && fine->votes != 0) {
        status = bw_fail(error, BW_INVALID, "model: fine.votes: a fine score takes no votes");
    }
    if (status) {
        return status;
    }
    size_t count = first_box[estimators];
    bw_model *m = bw_alloc_zero(1, sizeof *m);
    if (!m) {
        return bw_fail_nomem(error, sizeof *m);
    }
    m->first_box = bw_alloc_array((size_t)estimators + 1, sizeof *m->first_box);
    m->boxes = bw_alloc_array(count, sizeof *m->boxes);
    m->score = score ? copy_score(&of_codes, score) : NULL;
    m->fine = fine ? copy_score(&of_fine, fine) : NULL;
    if (!m->first_box || !m->boxes || (score && !m->score) || (fine && !m->fine)) {
        bw_model_free(m);
        return bw_fail_nomem(error, count * sizeof *m->boxes + sizeof *m->score);
    }
    status = training ? copy_training(training, &m->training, error) : BW_OK;
    if (status) {
        bw_model_free(m);
        return status;
    }
    memcpy(m->learner, learner, strlen(learner) + 1);
    memcpy(m->quantizer, quantizer, strlen(quantizer) + 1);
    m->estimators = estimators;
    m->threshold = threshold;
    memcpy(m->first_box, first_box, ((size_t)estimators + 1) * sizeof *m->first_box);
    if (count > 0) {
        memcpy(m->boxes, boxes, count * sizeof *m->boxes);
    }
    memcpy(m->fine_quantizer, fine_quantizer, strlen(fine_quantizer) + 1);
    *model = m;
    return BW_OK;
}

int32_t bw_model_copy(const bw_model *model, bw_model **copy, bw_error *error) {
    return bw_model_new(model->learner, model->quantizer, model->estimators, model->first_box, model->boxes,
                        model->threshold, model->score, model->fine_quantizer, model->fine, model->training,
                        copy, error);
}

void bw_model_free(bw_model *model) {
    if (model) {
        bw_free(model->first_box);
        bw_free(model->boxes);
        bw_free(model->score);
        bw_free(model->fine);
        bw_free(model->training);
        bw_free(model);
    }
}

/* ---- reading JSON ---- */

static const char *const member_names[] = {"boxwood_model", "learner", "dims", "quantizer", "estimators",
                                           "threshold",     "score",   "fine", "training"};
static const char *const score_names[] = {"terms", "votes", "shift", "threshold"};
static const char *const fine_names[] = {"quantizer", "terms", "shift", "threshold"};
static const char *const term_names[] = {"linear", "square", "constant"};

static int32_t check_names(const bw_json *json, const bw_json_value *object, const char *path,
                           const char *const *names, size_t n, bw_error *error) {
    uint32_t i = (uint32_t)(object - json->values) + 1;
    for (uint32_t m = 0; m < object->count; m++) {
        const char *name = json->values[i].string;
        bool known = false;
        for (size_t k = 0; k < n && !known; k++) {
            known = strcmp(name, names[k]) == 0;
        }
        if (!known) {
            return bw_fail(error, BW_INVALID,
                           "model: %sunknown member \"%.*s\"; it may come from a newer Boxwood", path,
                           bw_json_fit(name), name);
        }
        i = json->values[i + 1].next;
    }
    return BW_OK;
}

/* A member of a kind, which must be there. `path` is what stands before its name, e.g. "score.". */
static int32_t need(const bw_json *json, const bw_json_value *object, const char *path, const char *name,
                    bw_json_kind kind, const bw_json_value **value, bw_error *error) {
    static const char *const kinds[] = {"null",     "false",    "true",   "an integer",
                                        "a number", "a string", "a list", "an object"};
    *value = bw_json_member(json, object, name);
    if (!*value) {
        return bw_fail(error, BW_INVALID, "model: %s%s is missing", path, name);
    }
    if ((*value)->kind != kind) {
        return bw_fail(error, BW_INVALID, "model: %s%s: expected %s", path, name, kinds[kind]);
    }
    return BW_OK;
}

static int32_t need_integer(const bw_json *json, const bw_json_value *object, const char *path,
                            const char *name, int64_t low, int64_t high, int64_t *number, bw_error *error) {
    const bw_json_value *value;
    char what[48];
    int32_t status = need(json, object, path, name, BW_JSON_INTEGER, &value, error);
    if (status) {
        return status;
    }
    *number = value->integer;
    snprintf(what, sizeof what, "%s%s", path, name);
    return check_within(what, *number, low, high, error);
}

/* One [dim, lo, hi] at values[*at], put in its place by dimension; `path` names it. */
static int32_t read_range(const bw_json *json, uint32_t *at, bw_ranges *box, const char *path,
                          bw_error *error) {
    static const char *const parts[] = {"dim", "lo", "hi"};
    const bw_json_value *range = &json->values[*at];
    uint8_t numbers[3];
    if (range->kind != BW_JSON_ARRAY || range->count != 3) {
        return bw_fail(error, BW_INVALID, "model: %s: expected a range: [dim, lo, hi]", path);
    }
    for (uint32_t i = 0; i < 3; i++) {
        const bw_json_value *value = &json->values[*at + 1 + i];
        int64_t high = i == 0 ? BW_DIMS - 1 : 255;
        if (value->kind != BW_JSON_INTEGER) {
            return bw_fail(error, BW_INVALID, "model: %s: %s must be an integer", path, parts[i]);
        }
        if (value->integer < 0 || value->integer > high) {
            return bw_fail(error, BW_INVALID, "model: %s: %s %lld is out of range 0..%lld", path, parts[i],
                           (long long)value->integer, (long long)high);
        }
        numbers[i] = (uint8_t)value->integer;
    }
    if (numbers[1] > numbers[2]) {
        return bw_fail(error, BW_INVALID, "model: %s: lo %u is above hi %u", path, numbers[1], numbers[2]);
    }
    uint32_t place = box->count;
    for (; place > 0 && box->dim[place - 1] >= numbers[0]; place--) {
        if (box->dim[place - 1] == numbers[0]) {
            return bw_fail(error, BW_INVALID, "model: %s: dim %u has a range in this box already", path,
                           numbers[0]);
        }
        box->dim[place] = box->dim[place - 1];
        box->lo[place] = box->lo[place - 1];
        box->hi[place] = box->hi[place - 1];
    }
    box->dim[place] = numbers[0];
    box->lo[place] = numbers[1];
    box->hi[place] = numbers[2];
    box->count++;
    *at = range->next;
    return BW_OK;
}

static int32_t read_box(const bw_json *json, uint32_t *at, bw_ranges *box, uint32_t e, uint32_t b,
                        bw_error *error) {
    const bw_json_value *list = &json->values[*at];
    char path[64];
    if (list->kind != BW_JSON_ARRAY) {
        return bw_fail(error, BW_INVALID, "model: estimators[%u][%u]: expected a box: a list of ranges", e,
                       b);
    }
    *box = (bw_ranges){0};
    *at += 1;
    /* No box can get past its 33rd range: that one repeats a dimension. */
    for (uint32_t r = 0; r < list->count; r++) {
        snprintf(path, sizeof path, "estimators[%u][%u][%u]", e, b, r);
        int32_t status = read_range(json, at, box, path, error);
        if (status) {
            return status;
        }
    }
    return BW_OK;
}

/* *first_box and *boxes are owned by the caller, on failure too. */
static int32_t read_estimators(const bw_json *json, const bw_json_value *list, uint32_t **first_box,
                               bw_ranges **boxes, bw_error *error) {
    uint32_t at = (uint32_t)(list - json->values) + 1, boxes_in_all = 0;
    if (list->count > BW_MAX_ESTIMATORS) {
        return bw_fail(error, BW_INVALID, "model: estimators: there are %u of them; at most %d are allowed",
                       list->count, BW_MAX_ESTIMATORS);
    }
    *first_box = bw_alloc_zero((size_t)list->count + 1, sizeof **first_box);
    if (!*first_box) {
        return bw_fail_nomem(error, ((size_t)list->count + 1) * sizeof **first_box);
    }
    for (uint32_t e = 0, i = at; e < list->count; i = json->values[i].next, e++) {
        const bw_json_value *estimator = &json->values[i];
        if (estimator->kind != BW_JSON_ARRAY) {
            return bw_fail(error, BW_INVALID, "model: estimators[%u]: expected a list of boxes", e);
        }
        if (estimator->count > BW_MAX_BOXES - boxes_in_all) {
            return bw_fail(error, BW_INVALID, "model: estimators[%u]: the model has more than %d boxes", e,
                           BW_MAX_BOXES);
        }
        boxes_in_all += estimator->count;
        (*first_box)[e + 1] = boxes_in_all;
    }
    *boxes = bw_alloc_array(boxes_in_all, sizeof **boxes);
    if (!*boxes) {
        return bw_fail_nomem(error, boxes_in_all * sizeof **boxes);
    }
    for (uint32_t e = 0; e < list->count; e++) {
        at++;
        for (uint32_t b = (*first_box)[e]; b < (*first_box)[e + 1]; b++) {
            int32_t status = read_box(json, &at, &(*boxes)[b], e, b - (*first_box)[e], error);
            if (status) {
                return status;
            }
        }
    }
    return BW_OK;
}

static int32_t read_coefficients(const bw_json *json, const bw_json_value *object, const char *path,
                                 const char *name, uint32_t dims, int64_t limit, int64_t *coefficients,
                                 bw_error *error) {
    const bw_json_value *list;
    int32_t status = need(json, object, path, name, BW_JSON_ARRAY, &list, error);
    if (status) {
        return status;
    }
    if (list->count != dims) {
        return bw_fail(error, BW_INVALID, "model: %s%s: expected %u integers, got %u values", path, name,
                       dims, list->count);
    }
    const bw_json_value *value = list + 1;
    for (uint32_t d = 0; d < dims; d++, value++) {
        char what[64];
        snprintf(what, sizeof what, "%s%s[%u]", path, name, d);
        if (value->kind != BW_JSON_INTEGER) {
            return bw_fail(error, BW_INVALID, "model: %s: expected an integer", what);
        }
        status = check_within(what, value->integer, -limit, limit, error);
        if (status) {
            return status;
        }
        coefficients[d] = value->integer;
    }
    return BW_OK;
}

static int32_t read_term(const bw_json *json, const bw_json_value *object, const score_kind *kind,
                         uint32_t number, bw_term *term, bw_error *error) {
    char path[32];
    snprintf(path, sizeof path, "%s.terms[%u]", kind->name, number);
    if (object->kind != BW_JSON_OBJECT) {
        return bw_fail(error, BW_INVALID, "model: %s: expected an object", path);
    }
    strcat(path, ": ");
    int32_t status =
        check_names(json, object, path, term_names, sizeof term_names / sizeof *term_names, error);
    snprintf(path, sizeof path, "%s.terms[%u].", kind->name, number);
    if (!status) {
        status =
            read_coefficients(json, object, path, "linear", kind->dims, kind->linear, term->linear, error);
    }
    if (!status) {
        status =
            read_coefficients(json, object, path, "square", kind->dims, kind->square, term->square, error);
    }
    if (!status) {
        status = need_integer(json, object, path, "constant", -BW_MAX_CONSTANT, BW_MAX_CONSTANT,
                              &term->constant, error);
    }
    return status;
}

/* What both scores have: terms, shift and threshold. */
static int32_t read_score(const bw_json *json, const bw_json_value *object, const score_kind *kind,
                          bw_score *score, bw_error *error) {
    int64_t shift = 0;
    const bw_json_value *terms;
    char path[8];
    snprintf(path, sizeof path, "%s.", kind->name);
    int32_t status = need(json, object, path, "terms", BW_JSON_ARRAY, &terms, error);
    if (!status && (terms->count < 1 || terms->count > BW_MAX_TERMS)) {
        status = bw_fail(error, BW_INVALID, "model: %sterms: there are %u of them; 1 to %d are allowed", path,
                         terms->count, BW_MAX_TERMS);
    }
    if (status) {
        return status;
    }
    uint32_t at = (uint32_t)(terms - json->values) + 1;
    for (; !status && score->terms < terms->count; score->terms++, at = json->values[at].next) {
        status = read_term(json, &json->values[at], kind, score->terms, &score->term[score->terms], error);
    }
    if (!status) {
        status = need_integer(json, object, path, "shift", 0, BW_MAX_SHIFT, &shift, error);
    }
    if (status) {
        return status;
    }
    score->shift = (int32_t)shift;
    const bw_json_value *threshold = bw_json_member(json, object, "threshold");
    if (!threshold || (threshold->kind != BW_JSON_NULL && threshold->kind != BW_JSON_INTEGER)) {
        return bw_fail(error, BW_INVALID, "model: %sthreshold%s", path,
                       threshold ? ": expected an integer or null" : " is missing; it is an integer or null");
    }
    score->has_threshold = threshold->kind == BW_JSON_INTEGER;
    score->threshold = score->has_threshold ? threshold->integer : 0;
    return BW_OK;
}

/* The member `score` or `fine`, where it is there. *score is owned by the caller, on failure too. */
static int32_t read_scores(const bw_json *json, const bw_json_value *document, const score_kind *kind,
                           bw_score **score, const char **fine_quantizer, bw_error *error) {
    const bw_json_value *object = bw_json_member(json, document, kind->name);
    if (!object) {
        return BW_OK;
    }
    int32_t status = need(json, document, "", kind->name, BW_JSON_OBJECT, &object, error);
    if (status) {
        return status;
    }
    *score = bw_alloc_zero(1, sizeof **score);
    if (!*score) {
        return bw_fail_nomem(error, sizeof **score);
    }
    if (kind == &of_codes) {
        status = check_names(json, object, "score: ", score_names, sizeof score_names / sizeof *score_names,
                             error);
        if (!status) {
            status = need_integer(json, object, "score.", "votes", -BW_MAX_VOTE_SCORE, BW_MAX_VOTE_SCORE,
                                  &(*score)->votes, error);
        }
    } else {
        const bw_json_value *quantizer = bw_json_member(json, object, "quantizer");
        status =
            check_names(json, object, "fine: ", fine_names, sizeof fine_names / sizeof *fine_names, error);
        if (!status && quantizer && quantizer->kind != BW_JSON_STRING) {
            status = bw_fail(error, BW_INVALID, "model: fine.quantizer: expected a string");
        }
        *fine_quantizer = !status && quantizer ? quantizer->string : NULL;
    }
    return status ? status : read_score(json, object, kind, *score, error);
}

static int32_t read_model(const char *text, const bw_json *json, bw_model **model, bw_error *error) {
    const bw_json_value *document = json->values, *learner, *estimators;
    int64_t number, threshold;
    if (document->kind != BW_JSON_OBJECT) {
        return bw_fail(error, BW_INVALID, "model: expected a JSON object with the member \"boxwood_model\"");
    }
    int32_t status = need_integer(json, document, "", "boxwood_model", 1, INT64_MAX, &number, error);
    if (status) {
        return status;
    }
    if (number != 1) {
        return bw_fail(error, BW_VERSION,
                       "model: it is of version %lld; this Boxwood reads version 1: update Boxwood",
                       (long long)number);
    }
    status = check_names(json, document, "", member_names, sizeof member_names / sizeof *member_names, error);
    if (!status) {
        status = need(json, document, "", "learner", BW_JSON_STRING, &learner, error);
    }
    if (!status) {
        status = need_integer(json, document, "", "dims", BW_DIMS, BW_DIMS, &number, error);
    }
    if (!status) {
        status = need(json, document, "", "estimators", BW_JSON_ARRAY, &estimators, error);
    }
    if (!status) {
        status = need_integer(json, document, "", "threshold", 0, UINT32_MAX, &threshold, error);
    }
    if (status) {
        return status;
    }
    const bw_json_value *quantizer = bw_json_member(json, document, "quantizer");
    if (quantizer && quantizer->kind != BW_JSON_STRING) {
        return bw_fail(error, BW_INVALID, "model: quantizer: expected a string");
    }
    const bw_json_value *remembered = bw_json_member(json, document, "training");
    char *training = NULL;
    if (remembered) {
        status = need(json, document, "", "training", BW_JSON_OBJECT, &remembered, error);
        if (status) {
            return status;
        }
        size_t length = remembered->end - remembered->start;
        training = bw_alloc(length + 1);
        if (!training) {
            return bw_fail_nomem(error, length + 1);
        }
        memcpy(training, text + remembered->start, length);
        training[length] = 0;
    }
    uint32_t *first_box = NULL;
    bw_ranges *boxes = NULL;
    bw_score *score = NULL, *fine = NULL;
    const char *fine_quantizer = NULL;
    status = read_scores(json, document, &of_codes, &score, NULL, error);
    if (!status) {
        status = read_scores(json, document, &of_fine, &fine, &fine_quantizer, error);
    }
    if (!status) {
        status = read_estimators(json, estimators, &first_box, &boxes, error);
    }
    if (!status) {
        status =
            bw_model_new(learner->string, quantizer ? quantizer->string : "", estimators->count, first_box,
                         boxes, (uint32_t)threshold, score, fine_quantizer, fine, training, model, error);
    }
    bw_free(first_box);
    bw_free(boxes);
    bw_free(score);
    bw_free(fine);
    bw_free(training);
    return status;
}

int32_t bw_model_from_json(const char *json, size_t bytes, bw_model **model, bw_error *error) {
    if (!json || bytes == 0) {
        return bw_fail(error, BW_INVALID, "model: the document is empty");
    }
    if (bytes > BW_MAX_JSON_BYTES) {
        return bw_fail(error, BW_INVALID, "model: the document has %zu bytes; at most 64 MiB are allowed",
                       bytes);
    }
    bw_json parsed;
    bw_error inner;
    int32_t status = bw_json_parse(json, bytes, &parsed, &inner);
    if (status) {
        return bw_fail(error, status, "model: %s", inner.message);
    }
    status = read_model(json, &parsed, model, error);
    bw_json_free(&parsed);
    return status;
}

/* ---- writing JSON ---- */

static void append_quoted(bw_text *text, const char *string) {
    bw_text_append(text, "\"");
    for (; *string; string++) {
        bw_text_append(text, *string == '"' || *string == '\\' ? "\\%c" : "%c", *string);
    }
    bw_text_append(text, "\"");
}

static void append_integers(bw_text *text, const char *name, const int64_t *numbers, uint32_t n) {
    bw_text_append(text, "\"%s\":[", name);
    for (uint32_t d = 0; d < n; d++) {
        bw_text_append(text, "%s%lld", d ? "," : "", (long long)numbers[d]);
    }
    bw_text_append(text, "],");
}

static void append_terms(bw_text *text, const bw_score *score, uint32_t dims) {
    bw_text_append(text, "\"terms\":[");
    for (uint32_t t = 0; t < score->terms; t++) {
        bw_text_append(text, t ? ",{" : "{");
        append_integers(text, "linear", score->term[t].linear, dims);
        append_integers(text, "square", score->term[t].square, dims);
        bw_text_append(text, "\"constant\":%lld}", (long long)score->term[t].constant);
    }
    bw_text_append(text, "],");
}

static void append_cut(bw_text *text, const bw_score *score) {
    bw_text_append(text, "\"shift\":%d,\"threshold\":", score->shift);
    if (score->has_threshold) {
        bw_text_append(text, "%lld}", (long long)score->threshold);
    } else {
        bw_text_append(text, "null}");
    }
}

static int32_t finish_text(bw_text *text, char **out, bw_error *error) {
    if (text->failed) {
        size_t bytes = text->length;
        bw_free(text->data);
        return bw_fail_nomem(error, bytes);
    }
    *out = text->data;
    return BW_OK;
}

int32_t bw_model_to_json(const bw_model *model, char **json, bw_error *error) {
    bw_text text = {0};
    bw_text_append(&text, "{\"boxwood_model\":1,\"learner\":");
    append_quoted(&text, model->learner);
    bw_text_append(&text, ",\"dims\":32,\"quantizer\":");
    append_quoted(&text, model->quantizer);
    bw_text_append(&text, ",\"estimators\":[");
    for (uint32_t e = 0; e < model->estimators; e++) {
        bw_text_append(&text, e ? ",[" : "[");
        for (uint32_t b = model->first_box[e]; b < model->first_box[e + 1]; b++) {
            const bw_ranges *box = &model->boxes[b];
            bw_text_append(&text, b > model->first_box[e] ? ",[" : "[");
            for (uint32_t r = 0; r < box->count; r++) {
                bw_text_append(&text, "%s[%u,%u,%u]", r ? "," : "", box->dim[r], box->lo[r], box->hi[r]);
            }
            bw_text_append(&text, "]");
        }
        bw_text_append(&text, "]");
    }
    bw_text_append(&text, "],\"threshold\":%u", model->threshold);
    if (model->score) {
        bw_text_append(&text, ",\"score\":{");
        append_terms(&text, model->score, BW_DIMS);
        bw_text_append(&text, "\"votes\":%lld,", (long long)model->score->votes);
        append_cut(&text, model->score);
    }
    if (model->fine) {
        bw_text_append(&text, ",\"fine\":{\"quantizer\":");
        append_quoted(&text, model->fine_quantizer);
        bw_text_append(&text, ",");
        append_terms(&text, model->fine, BW_FINE_DIMS);
        append_cut(&text, model->fine);
    }
    if (model->training) {
        bw_text_append(&text, ",\"training\":%s", model->training);
    }
    bw_text_append(&text, "}");
    return finish_text(&text, json, error);
}

/* ---- writing SQL ----
 * Parts that are the same for every row are left out or become TRUE or FALSE. Long chains of one operator are
 * written as groups of groups in parentheses, because databases nest a chain as deep as it is long and limit
 * the depth. */

#define CHAIN 32

static bool is_whole_range(const bw_ranges *box, uint32_t r) {
    return box->lo[r] == 0 && box->hi[r] == 255;
}

static bool is_whole_box(const bw_ranges *box) {
    for (uint32_t r = 0; r < box->count; r++) {
        if (!is_whole_range(box, r)) {
            return false;
        }
    }
    return true;
}

static void sql_box(bw_text *text, const bw_ranges *box) {
    const char *separator = "";
    for (uint32_t r = 0; r < box->count; r++) {
        uint32_t lo = box->lo[r], hi = box->hi[r];
        if (is_whole_range(box, r)) {
            continue;
        }
        bw_text_append(text, "%sd%02u", separator, box->dim[r]);
        if (lo == hi) {
            bw_text_append(text, " = %u", lo);
        } else if (lo == 0) {
            bw_text_append(text, " <= %u", hi);
        } else if (hi == 255) {
            bw_text_append(text, " >= %u", lo);
        } else {
            bw_text_append(text, " BETWEEN %u AND %u", lo, hi);
        }
        separator = " AND ";
    }
}

/* Items first .. last - 1 as "item operator item ...", grouped. */
static void sql_chain(bw_text *text, const char *operator, uint32_t first, uint32_t last,
                      void (*item)(bw_text *text, const bw_model *model, uint32_t number),
                      const bw_model *model) {
    uint32_t group = 1;
    while ((last - first + group - 1) / group > CHAIN) {
        group *= CHAIN;
    }
    for (uint32_t i = first; i < last; i += group) {
        uint32_t end = last - i < group ? last : i + group;
        bw_text_append(text, "%s", i > first ? operator : "");
        if (end - i == 1) {
            item(text, model, i);
        } else {
            bw_text_append(text, "(");
            sql_chain(text, operator, i, end, item, model);
            bw_text_append(text, ")");
        }
    }
}

static void sql_box_item(bw_text *text, const bw_model *model, uint32_t box) {
    bw_text_append(text, "(");
    sql_box(text, &model->boxes[box]);
    bw_text_append(text, ")");
}

/* In the SQL writer's copy of a model every box has ranges and every estimator has boxes. */
static void sql_estimator(bw_text *text, const bw_model *model, uint32_t estimator) {
    uint32_t first = model->first_box[estimator], last = model->first_box[estimator + 1];
    bw_text_append(text, "(");
    if (last - first == 1) {
        sql_box(text, &model->boxes[first]);
    } else {
        sql_chain(text, " OR ", first, last, sql_box_item, model);
    }
    bw_text_append(text, ")");
}

static void sql_vote(bw_text *text, const bw_model *model, uint32_t estimator) {
    bw_text_append(text, "CAST(");
    sql_estimator(text, model, estimator);
    bw_text_append(text, " AS INTEGER)");
}

static void sql_product(bw_text *text, int64_t factor, bool *first) {
    if (*first) {
        bw_text_append(text, "%lld * ", (long long)factor);
    } else {
        bw_text_append(text, " %c %lld * ", factor < 0 ? '-' : '+',
                       (long long)(factor < 0 ? -factor : factor));
    }
    *first = false;
}

static void sql_constant(bw_text *text, int64_t constant, bool first) {
    if (first) {
        bw_text_append(text, "%lld", (long long)constant);
    } else if (constant != 0) {
        bw_text_append(text, " %c %lld", constant < 0 ? '-' : '+',
                       (long long)(constant < 0 ? -constant : constant));
    }
}

static void sql_value(bw_text *text, bool fine, uint32_t d) {
    bw_text_append(text, fine ? "CAST(fine[%u] AS BIGINT)" : "CAST(d%02u AS BIGINT)", fine ? d + 1 : d);
}

/* A chain of up to 256 products: as deep as it is long, so that it is written in groups of CHAIN dimensions.
 */
static void sql_term(bw_text *text, const bw_term *term, bool fine, bool *first) {
    uint32_t dims = fine ? BW_FINE_DIMS : BW_DIMS;
    for (uint32_t from = 0; from < dims; from += CHAIN) {
        bool opening = true;
        for (uint32_t d = from; d < from + CHAIN; d++) {
            if (term->linear[d] == 0 && term->square[d] == 0) {
                continue;
            }
            if (opening && fine) {
                bw_text_append(text, *first ? "(" : " + (");
                *first = true;
            }
            opening = false;
            if (term->linear[d] != 0) {
                sql_product(text, term->linear[d], first);
                sql_value(text, fine, d);
            }
            if (term->square[d] != 0) {
                sql_product(text, term->square[d], first);
                sql_value(text, fine, d);
                bw_text_append(text, " * ");
                sql_value(text, fine, d);
            }
        }
        if (fine && !opening) {
            bw_text_append(text, ")");
        }
    }
}

/* score >= threshold; `always` estimators that vote for every row are not among model's. */
static void sql_score(bw_text *text, const bw_model *model, const bw_score *score, uint32_t always) {
    bool fine = score == model->fine, first = true;
    int64_t constant = score->votes * (int64_t)always;
    bw_text_append(text, "(");
    if (score->votes != 0 && model->estimators > 0) {
        sql_product(text, score->votes, &first);
        bw_text_append(text, "CAST(");
        sql_chain(text, " + ", 0, model->estimators, sql_vote, model);
        bw_text_append(text, " AS BIGINT)");
    }
    if (score->terms == 1) {
        constant += score->term[0].constant;
        sql_term(text, &score->term[0], fine, &first);
    } else {
        bw_text_append(text, first ? "greatest(" : " + greatest(");
        for (uint32_t t = 0; t < score->terms; t++) {
            bool alone = true;
            bw_text_append(text, t ? ", " : "");
            sql_term(text, &score->term[t], fine, &alone);
            sql_constant(text, score->term[t].constant, alone);
        }
        bw_text_append(text, ")");
        first = false;
    }
    sql_constant(text, constant, first);
    bw_text_append(text, " >= %lld)", (long long)score->threshold);
}

/* votes >= threshold of a model with at least one estimator and 1 <= threshold <= estimators */
static void sql_votes(bw_text *text, const bw_model *model) {
    if (model->estimators == 1) {
        sql_estimator(text, model, 0);
        return;
    }
    bw_text_append(text, "(");
    if (model->threshold == 1) {
        sql_chain(text, " OR ", 0, model->estimators, sql_estimator, model);
    } else if (model->threshold == model->estimators) {
        sql_chain(text, " AND ", 0, model->estimators, sql_estimator, model);
    } else {
        bw_text_append(text, "(");
        sql_chain(text, " + ", 0, model->estimators, sql_vote, model);
        bw_text_append(text, ") >= %u", model->threshold);
    }
    bw_text_append(text, ")");
}

int32_t bw_model_to_sql(const bw_model *model, char **sql, bw_error *error) {
    /* A copy without the estimators that vote for every row, which lower the threshold, and those that vote
     * for none. */
    bw_model varying = *model;
    uint32_t always = 0;
    varying.estimators = 0;
    varying.first_box = bw_alloc_array((size_t)model->estimators + 1, sizeof *varying.first_box);
    varying.boxes = bw_alloc_array(bw_model_boxes(model), sizeof *varying.boxes);
    if (!varying.first_box || !varying.boxes) {
        bw_free(varying.first_box);
        bw_free(varying.boxes);
        return bw_fail_nomem(error, bw_model_boxes(model) * sizeof *varying.boxes);
    }
    varying.first_box[0] = 0;
    for (uint32_t e = 0; e < model->estimators; e++) {
        uint32_t count = varying.first_box[varying.estimators];
        bool whole = false;
        for (uint32_t b = model->first_box[e]; b < model->first_box[e + 1] && !whole; b++) {
            whole = is_whole_box(&model->boxes[b]);
            varying.boxes[count++] = model->boxes[b];
        }
        if (whole) {
            always++;
        } else if (count > varying.first_box[varying.estimators]) {
            varying.first_box[++varying.estimators] = count;
        }
    }
    varying.threshold = model->threshold > always ? model->threshold - always : 0;

    bw_text text = {0};
    const bw_score *scores[2] = {model->score, model->fine};
    const char *separator = "";
    bool never = varying.threshold > varying.estimators;
    int parts = varying.threshold > 0;
    for (int i = 0; i < 2; i++) {
        if (scores[i] && (!scores[i]->has_threshold || scores[i]->threshold <= -MAX_SCORE)) {
            scores[i] = NULL;
        }
        never = never || (scores[i] && scores[i]->threshold >= MAX_SCORE);
        parts += scores[i] != NULL;
    }
    if (never || parts == 0) {
        bw_text_append(&text, never ? "FALSE" : "TRUE");
        parts = 0;
    }
    bw_text_append(&text, parts > 1 ? "(" : "");
    if (parts > 0 && varying.threshold > 0) {
        sql_votes(&text, &varying);
        separator = " AND ";
    }
    for (int i = 0; parts > 0 && i < 2; i++) {
        if (scores[i]) {
            bw_text_append(&text, "%s", separator);
            sql_score(&text, &varying, scores[i], always);
            separator = " AND ";
        }
    }
    bw_text_append(&text, parts > 1 ? ")" : "");
    bw_free(varying.first_box);
    bw_free(varying.boxes);
    return finish_text(&text, sql, error);
}

/* ---- describing and evaluating ---- */

void bw_model_describe(const bw_model *model, bw_model_info *info) {
    const bw_score *score = model->score, *fine = model->fine;
    *info = (bw_model_info){.estimators = model->estimators,
                            .boxes = bw_model_boxes(model),
                            .threshold = model->threshold,
                            .has_score = score != NULL,
                            .score_terms = score ? score->terms : 0,
                            .has_score_threshold = score && score->has_threshold,
                            .score_threshold = score ? score->threshold : 0,
                            .score_shift = score ? score->shift : 0,
                            .has_fine = fine != NULL,
                            .fine_terms = fine ? fine->terms : 0,
                            .has_fine_threshold = fine && fine->has_threshold,
                            .fine_threshold = fine ? fine->threshold : 0,
                            .fine_shift = fine ? fine->shift : 0};
    info->result_shift = fine ? fine->shift : score ? score->shift : 0;
    memcpy(info->learner, model->learner, sizeof info->learner);
    memcpy(info->quantizer, model->quantizer, sizeof info->quantizer);
    memcpy(info->fine_quantizer, model->fine_quantizer, sizeof info->fine_quantizer);
    for (uint32_t b = 0; b < info->boxes; b++) {
        info->ranges += model->boxes[b].count;
    }
}

void bw_model_ranges(const bw_model *model, bw_range *ranges) {
    for (uint32_t e = 0; e < model->estimators; e++) {
        for (uint32_t b = model->first_box[e]; b < model->first_box[e + 1]; b++) {
            const bw_ranges *box = &model->boxes[b];
            for (uint32_t r = 0; r < box->count; r++) {
                *ranges++ = (bw_range){e, b - model->first_box[e], box->dim[r], box->lo[r], box->hi[r]};
            }
        }
    }
}

int64_t bw_score_terms(const bw_score *score, uint32_t n, const uint8_t *code, size_t stride) {
    int64_t most = INT64_MIN;
    for (uint32_t t = 0; t < score->terms; t++) {
        const bw_term *term = &score->term[t];
        int64_t sum = term->constant;
        for (uint32_t d = 0; d < n; d++) {
            int64_t x = code[d * stride];
            sum += (term->linear[d] + term->square[d] * x) * x;
        }
        most = sum > most ? sum : most;
    }
    return most;
}

static bool box_contains(const bw_ranges *box, const uint8_t *code) {
    for (uint32_t r = 0; r < box->count; r++) {
        uint8_t x = code[box->dim[r]];
        if (x < box->lo[r] || x > box->hi[r]) {
            return false;
        }
    }
    return true;
}

static int32_t count_votes(const bw_model *model, const uint8_t *code) {
    int32_t votes = 0;
    for (uint32_t e = 0; e < model->estimators; e++) {
        for (uint32_t b = model->first_box[e]; b < model->first_box[e + 1]; b++) {
            if (box_contains(&model->boxes[b], code)) {
                votes++;
                break;
            }
        }
    }
    return votes;
}

int32_t bw_model_evaluate(const bw_model *model, const uint8_t *codes, const uint8_t *fine, size_t n,
                          int32_t *votes, int64_t *scores, uint8_t *match, bw_error *error) {
    if (!model || (!codes && n > 0)) {
        return bw_fail(error, BW_INVALID, "evaluate: no %s", model ? "codes" : "model");
    }
    if (model->fine && !fine && n > 0 && (scores || match)) {
        return bw_fail(
            error, BW_INVALID,
            "evaluate: the model has a fine score: give the rows' fine codes, 128 bytes each, too");
    }
    for (size_t i = 0; i < n; i++) {
        const uint8_t *code = codes + i * BW_DIMS;
        int32_t count = count_votes(model, code);
        int64_t value = count;
        bool enough = (uint32_t)count >= model->threshold;
        if (model->score) {
            value = count * model->score->votes + bw_score_terms(model->score, BW_DIMS, code, 1);
            enough = enough && (!model->score->has_threshold || value >= model->score->threshold);
        }
        if (model->fine && fine) {
            value = bw_score_terms(model->fine, BW_FINE_DIMS, fine + i * BW_FINE_DIMS, 1);
            enough = enough && (!model->fine->has_threshold || value >= model->fine->threshold);
        }
        if (votes) {
            votes[i] = count;
        }
        if (scores) {
            scores[i] = value;
        }
        if (match) {
            match[i] = enough;
        }
    }
    return BW_OK;
}
