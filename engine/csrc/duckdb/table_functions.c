/* table_functions.c - what each table function takes, does and returns; docs/SQL.md tells people. */
#include "extension.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define END_OF_LIST {0}

static bool ok(int32_t status) {
    return status == BW_OK;
}

/* ---- boxwood_info -------------------------------------------------------------------------------------- */

static bool index_bind(call *call, duckdb_bind_info info, bw_error *error) {
    return read_index(info, call, error);
}

/* Fingerprints come from files: whatever stands there, only printable ASCII is shown. */
static bool set_fingerprint(cell *cell, const char fingerprint[BW_FINGERPRINT_BYTES], bw_error *error) {
    char text[BW_FINGERPRINT_BYTES + 1] = {0};
    for (int i = 0; i < BW_FINGERPRINT_BYTES && fingerprint[i]; i++) {
        text[i] = fingerprint[i] >= ' ' && fingerprint[i] <= '~' ? fingerprint[i] : '?';
    }
    return !*text || set_text(cell, text, error);
}

static bool info_run(const call *call, const bw_index *index, relation *out, bw_error *error) {
    (void)call;
    bw_index_info about;
    char uuid[UUID_BYTES];
    if (!ok(bw_index_describe(index, &about))) {
        return fail(error, "the index cannot be described");
    }
    if (!relation_reserve(out, about.segments, error)) {
        return false;
    }
    for (uint32_t i = 0; i < about.segments; i++) {
        bw_segment_info segment;
        if (!ok(bw_index_segment(index, i, &segment, error))) {
            return false;
        }
        cell *row = relation_row(out);
        row[1].integer = (int64_t)segment.rows;
        row[2].integer = (int64_t)segment.blocks;
        row[3].integer = (int64_t)segment.bytes;
        row[4].integer = (int64_t)segment.generation;
        row[5].integer = segment.format;
        row[6].integer = segment.min_id;
        row[7].integer = segment.max_id;
        row[13].integer = (int64_t)segment.deleted;
        if (!set_text(&row[0], segment.name, error) ||
            !set_fingerprint(&row[8], about.fingerprints.encoder, error) ||
            !set_fingerprint(&row[9], about.fingerprints.head, error) ||
            !set_fingerprint(&row[10], about.fingerprints.quantizer, error) ||
            !set_text(&row[11], uuid_text(about.uuid, uuid), error) ||
            !set_fingerprint(&row[12], about.fingerprints.fine, error)) {
            return false;
        }
    }
    return true;
}

static const column info_columns[] = {
    {"segment", DUCKDB_TYPE_VARCHAR}, {"rows", DUCKDB_TYPE_BIGINT},       {"blocks", DUCKDB_TYPE_BIGINT},
    {"bytes", DUCKDB_TYPE_BIGINT},    {"generation", DUCKDB_TYPE_BIGINT}, {"format", DUCKDB_TYPE_INTEGER},
    {"min_id", DUCKDB_TYPE_BIGINT},   {"max_id", DUCKDB_TYPE_BIGINT},     {"encoder", DUCKDB_TYPE_VARCHAR},
    {"head", DUCKDB_TYPE_VARCHAR},    {"quantizer", DUCKDB_TYPE_VARCHAR}, {"uuid", DUCKDB_TYPE_VARCHAR},
    {"fine", DUCKDB_TYPE_VARCHAR},    {"deleted", DUCKDB_TYPE_BIGINT},    END_OF_LIST};

static const table_function boxwood_info = {
    .name = "boxwood_info", .columns = info_columns, .bind = index_bind, .run = info_run};

/* ---- boxwood_knn --------------------------------------------------------------------------------------- */

/* The code that is asked for: given, or a row's. */
static bool query_code(const call *call, const bw_index *index, uint8_t code[BW_DIMS], bw_error *error) {
    memcpy(code, call->code, BW_DIMS);
    return !call->by_id || ok(bw_index_codes(index, &call->like, 1, code, NULL, error));
}

static bool knn_bind(call *call, duckdb_bind_info info, bw_error *error) {
    bool by_code = given(info, "q");
    if (by_code == given(info, "like")) {
        return fail(error, "give one of q := [32 code values] and like := id of a row");
    }
    int64_t k = 60;
    call->recall = 1;
    if (!read_integer(info, "k", &k, error) || !read_integer(info, "like", &call->like, error) ||
        !read_real(info, "recall", &call->recall, error)) {
        return false;
    }
    if (k < 1 || k > BW_MAX_K) {
        return fail(error, "k is %lld: give 1 to %d neighbours", (long long)k, BW_MAX_K);
    }
    if (!recall_ok(call->recall)) {
        return fail(error, RECALL_ADVICE, call->recall);
    }
    if (!read_optional_model(info, "within", &call->within, error) ||
        !read_ids(info, "ids", &call->ids, &call->n_ids, error)) {
        return false;
    }
    call->k = (uint32_t)k;
    call->by_id = !by_code;
    if (by_code) {
        uint8_t *q = NULL;
        size_t n = 0;
        if (!read_bytes(info, "q", &q, &n, error)) {
            return false;
        }
        if (n == BW_DIMS) {
            memcpy(call->code, q, BW_DIMS);
        }
        free(q);
        if (n != BW_DIMS) {
            return fail(error, "q has %zu values: a code has %d", n, BW_DIMS);
        }
    }
    uint8_t code[BW_DIMS];
    return read_index(info, call, error) && query_code(call, call->index, code, error);
}

static bool knn_run(const call *call, const bw_index *index, relation *out, bw_error *error) {
    uint8_t code[BW_DIMS];
    uint32_t found = 0;
    int64_t *ids = malloc(call->k * sizeof *ids);
    uint32_t *distances = malloc(call->k * sizeof *distances);
    bool done = (ids && distances) || fail_memory(error);
    /* DuckDB runs such a function on one of its threads and does not tell how many more it may use. */
    bw_knn_options options = {.k = call->k, .threads = 1, .recall = call->recall, .within = call->within};
    options.ids = call->ids;
    options.n_ids = call->n_ids;
    done = done && query_code(call, index, code, error) &&
           ok(bw_knn(index, code, 1, &options, ids, distances, &found, NULL, error)) &&
           relation_reserve(out, found, error);
    for (uint32_t i = 0; done && i < found; i++) {
        cell *row = relation_row(out);
        row[0].integer = ids[i];
        row[1].real = sqrt(distances[i]);
    }
    free(ids);
    free(distances);
    return done;
}

static const parameter knn_parameters[] = {{"q", DUCKDB_TYPE_UTINYINT, true},
                                           {"like", DUCKDB_TYPE_BIGINT, false},
                                           {"k", DUCKDB_TYPE_BIGINT, false},
                                           {"recall", DUCKDB_TYPE_DOUBLE, false},
                                           {"within", DUCKDB_TYPE_VARCHAR, false},
                                           {"ids", DUCKDB_TYPE_BIGINT, true},
                                           END_OF_LIST};
static const column knn_columns[] = {
    {"id", DUCKDB_TYPE_BIGINT}, {"distance", DUCKDB_TYPE_DOUBLE}, END_OF_LIST};

static const table_function boxwood_knn = {.name = "boxwood_knn",
                                           .parameters = knn_parameters,
                                           .columns = knn_columns,
                                           .bind = knn_bind,
                                           .run = knn_run};

/* ---- boxwood_search ------------------------------------------------------------------------------------ */

static const parameter model_parameters[] = {{"model", DUCKDB_TYPE_VARCHAR, false}, END_OF_LIST};
static const column match_columns[] = {
    {"id", DUCKDB_TYPE_BIGINT}, {"votes", DUCKDB_TYPE_INTEGER}, {"score", DUCKDB_TYPE_DOUBLE}, END_OF_LIST};

static bool search_bind(call *call, duckdb_bind_info info, bw_error *error) {
    return read_model(info, &call->model, error) && read_index(info, call, error);
}

static bool open_model(const bw_index *index, const bw_model *model, uint32_t flags, opened *out,
                       bw_error *error) {
    bw_model_info info;
    bw_model_describe(model, &info);
    out->score_shift = info.result_shift;
    memcpy(out->learner, info.learner, sizeof out->learner);
    return ok(bw_search_open(index, model, flags, &out->search, error));
}

static bool search_open(const call *call, const bw_index *index, opened *out, bw_error *error) {
    return open_model(index, call->model, call->function->count ? BW_COUNT_ONLY : 0, out, error);
}

static const table_function boxwood_search = {.name = "boxwood_search",
                                              .parameters = model_parameters,
                                              .columns = match_columns,
                                              .bind = search_bind,
                                              .open = search_open};

/* ---- boxwood_live_scan --------------------------------------------------------------------------------- */

/* boxwood_search, and of which generation the index was. search_model holds that against what its transaction
 * sees; a row more than was found has no id and tells it in any case. */
static const column stamped_columns[] = {{"id", DUCKDB_TYPE_BIGINT},
                                         {"votes", DUCKDB_TYPE_INTEGER},
                                         {"score", DUCKDB_TYPE_DOUBLE},
                                         {"generation", DUCKDB_TYPE_BIGINT},
                                         END_OF_LIST};

static const table_function boxwood_live_scan = {.name = "boxwood_live_scan",
                                                 .parameters = model_parameters,
                                                 .columns = stamped_columns,
                                                 .bind = search_bind,
                                                 .open = search_open,
                                                 .stamped = true};

/* ---- boxwood_count ------------------------------------------------------------------------------------- */

static const column count_columns[] = {{"count", DUCKDB_TYPE_BIGINT},
                                       {"rows_total", DUCKDB_TYPE_BIGINT},
                                       {"blocks", DUCKDB_TYPE_BIGINT},
                                       {"blocks_pruned", DUCKDB_TYPE_BIGINT},
                                       {"blocks_outscored", DUCKDB_TYPE_BIGINT},
                                       {"blocks_contained", DUCKDB_TYPE_BIGINT},
                                       {"blocks_planes", DUCKDB_TYPE_BIGINT},
                                       {"blocks_scanned", DUCKDB_TYPE_BIGINT},
                                       {"fine_rows", DUCKDB_TYPE_BIGINT},
                                       {"bytes", DUCKDB_TYPE_BIGINT},
                                       {"milliseconds", DUCKDB_TYPE_DOUBLE},
                                       END_OF_LIST};

static const table_function boxwood_count = {.name = "boxwood_count",
                                             .parameters = model_parameters,
                                             .columns = count_columns,
                                             .bind = search_bind,
                                             .open = search_open,
                                             .count = true};

/* ---- boxwood_range ------------------------------------------------------------------------------------- */

/* A box as a model, so that one executor does both. */
static bool box_model(const uint8_t *dims, const uint8_t *lo, const uint8_t *hi, size_t n, bw_model **model,
                      bw_error *error) {
    char json[128 + BW_DIMS * 16];
    size_t at = (size_t)snprintf(json, sizeof json,
                                 "{\"boxwood_model\":1,\"learner\":\"range\",\"dims\":%d,\"estimators\":[[[",
                                 BW_DIMS);
    uint32_t seen = 0;
    for (size_t i = 0; i < n; i++) {
        if (dims[i] >= BW_DIMS) {
            return fail(error, "dims has %d: dimensions are 0 to %d", dims[i], BW_DIMS - 1);
        }
        if (seen >> dims[i] & 1) {
            return fail(error, "dims has %d twice: give each dimension one range", dims[i]);
        }
        if (lo[i] > hi[i]) {
            return fail(error, "the range of dimension %d begins at %d, above its end %d", dims[i], lo[i],
                        hi[i]);
        }
        seen |= UINT32_C(1) << dims[i];
        at += (size_t)snprintf(json + at, sizeof json - at, "%s[%d,%d,%d]", i ? "," : "", dims[i], lo[i],
                               hi[i]);
    }
    at += (size_t)snprintf(json + at, sizeof json - at, "]]],\"threshold\":1}");
    return ok(bw_model_from_json(json, at, model, error));
}

static bool range_bind(call *call, duckdb_bind_info info, bw_error *error) {
    uint8_t *dims = NULL, *lo = NULL, *hi = NULL;
    size_t n = 0, n_lo = 0, n_hi = 0;
    bool done = read_bytes(info, "dims", &dims, &n, error) && read_bytes(info, "lo", &lo, &n_lo, error) &&
                read_bytes(info, "hi", &hi, &n_hi, error);
    if (done && (!dims || !lo || !hi)) {
        done =
            fail(error, "give dims := [..], lo := [..] and hi := [..]: lo <= value <= hi in each dimension");
    }
    if (done && (n != n_lo || n != n_hi)) {
        done =
            fail(error, "dims, lo and hi have %zu, %zu and %zu values: give as many of each", n, n_lo, n_hi);
    }
    done = done && box_model(dims, lo, hi, n, &call->model, error) && read_index(info, call, error);
    free(dims);
    free(lo);
    free(hi);
    return done;
}

static const parameter range_parameters[] = {{"dims", DUCKDB_TYPE_UTINYINT, true},
                                             {"lo", DUCKDB_TYPE_UTINYINT, true},
                                             {"hi", DUCKDB_TYPE_UTINYINT, true},
                                             END_OF_LIST};
static const column id_columns[] = {{"id", DUCKDB_TYPE_BIGINT}, END_OF_LIST};

static const table_function boxwood_range = {.name = "boxwood_range",
                                             .parameters = range_parameters,
                                             .columns = id_columns,
                                             .bind = range_bind,
                                             .open = search_open};

/* ---- boxwood_train, boxwood_refine --------------------------------------------------------------------- */

static const struct {
    const char *name;
    int32_t learner;
    uint32_t random_negatives; /* where nothing else is asked for */
} learners[] = {{"cover", BW_LEARNER_COVER, BW_COVER_ROWS},
                {"branch", BW_LEARNER_BRANCH, BW_BRANCH_ROWS},
                {"ensemble", BW_LEARNER_ENSEMBLE, BW_BRANCH_ROWS}};

bool choose_learner(const char *name, size_t bytes, bw_train_options *options, bw_error *error) {
    for (size_t i = 0; i < sizeof learners / sizeof *learners; i++) {
        if (strlen(learners[i].name) == bytes && memcmp(name, learners[i].name, bytes) == 0) {
            options->learner = learners[i].learner;
            options->random_negatives = learners[i].random_negatives;
            return true;
        }
    }
    return fail(error, "there is no learner '%.*s': give 'cover', 'branch' or 'ensemble'",
                (int)(bytes < 40 ? bytes : 40), name);
}

static bool read_learner(duckdb_bind_info info, bw_train_options *options, bw_error *error) {
    char *name = NULL;
    if (!read_text(info, "learner", &name, error)) {
        return false;
    }
    bool known = choose_learner(name ? name : "cover", name ? strlen(name) : 5, options, error);
    if (name) {
        duckdb_free(name);
    }
    return known;
}

bool check_count(const char *name, int64_t value, int64_t least, int64_t most, uint32_t *count,
                 bw_error *error) {
    if (value < least || value > most) {
        return fail(error, "%s is %lld: give %lld to %lld", name, (long long)value, (long long)least,
                    (long long)most);
    }
    *count = (uint32_t)value;
    return true;
}

static bool read_count(duckdb_bind_info info, const char *name, int64_t least, int64_t most, uint32_t *count,
                       bw_error *error) {
    int64_t value = *count;
    return read_integer(info, name, &value, error) && check_count(name, value, least, most, count, error);
}

bool check_training(const bw_train_options *options, size_t n_positives, bw_error *error) {
    bool cover = options->learner == BW_LEARNER_COVER;
    if (cover && !options->prior) {
        return fail(error, "prior := false is for the learners 'branch' and 'ensemble': name one of them, or "
                           "leave it out");
    }
    if (!cover && (options->boxes || options->rerank || !options->guard)) {
        return fail(error, "%s is for the learner 'cover': leave it out, or train by that",
                    options->boxes    ? "boxes"
                    : options->rerank ? "rerank"
                                      : "guard := false");
    }
    if (!(options->negative_weight >= 0.01 && options->negative_weight <= 100)) {
        return fail(error, "negative_weight is %g: give 0.01 to 100", options->negative_weight);
    }
    if (!n_positives && !options->query) {
        return fail(error, "there are no positives: give positives := [ids of rows that are right], or "
                           "query := the code of what is sought");
    }
    return true;
}

static bool train_bind(call *call, duckdb_bind_info info, bw_error *error) {
    bw_train_options *options = &call->options;
    *options = (bw_train_options){.estimators = 25, .negative_weight = 1.0, .prior = 1, .guard = 1};
    if (!read_learner(info, options, error) ||
        !read_count(info, "estimators", 1, BW_MAX_ESTIMATORS, &options->estimators, error) ||
        !read_count(info, "boxes", 0, BW_MAX_COVER_BOXES, &options->boxes, error) ||
        (!given_null(info, "random_negatives") &&
         !read_count(info, "random_negatives", 0, BW_MAX_RANDOM_NEGATIVES, &options->random_negatives,
                     error)) ||
        !read_real(info, "negative_weight", &options->negative_weight, error) ||
        !read_unsigned(info, "seed", &options->seed, error) ||
        !read_flag(info, "prior", &options->prior, error) ||
        !read_flag(info, "rerank", &options->rerank, error) ||
        !read_flag(info, "guard", &options->guard, error) ||
        !read_code(info, "query", BW_DIMS, &options->query, error) ||
        !read_code(info, "query_fine", BW_FINE_DIMS, &options->query_fine, error) ||
        !read_ids(info, "positives", &call->positives, &call->n_positives, error) ||
        !read_ids(info, "negatives", &call->negatives, &call->n_negatives, error)) {
        return false;
    }
    return check_training(options, call->n_positives, error) && read_index(info, call, error);
}

bool training_cells(const bw_model *model, const bw_train_stats *stats, cell cells[TRAIN_COLUMNS],
                    bw_error *error) {
    bw_model_info info;
    char *json = NULL;
    if (!ok(bw_model_to_json(model, &json, error))) {
        return false;
    }
    bw_model_describe(model, &info);
    cells[2].integer = stats->estimators;
    cells[3].integer = stats->boxes;
    cells[4].integer = stats->terms;
    cells[5].integer = stats->positives;
    cells[6].integer = stats->negatives;
    cells[7].integer = stats->random_negatives;
    cells[8].integer = stats->held_out;
    cells[9].real = stats->rows;
    cells[10].real = stats->precision;
    cells[11].real = stats->precision_low;
    cells[12].real = stats->precision_high;
    cells[13].real = stats->recall;
    cells[14].real = stats->recall_low;
    cells[15].real = stats->recall_high;
    cells[16].integer = stats->fallback;
    cells[18].real = (double)stats->nanoseconds / 1e6;
    bool done = set_text(&cells[0], json, error) && set_text(&cells[1], info.learner, error) &&
                (!stats->note[0] || set_text(&cells[17], stats->note, error));
    bw_free(json);
    return done;
}

static bool train(const call *call, const bw_index *index, bw_model **model, bw_train_stats *stats,
                  bw_error *error) {
    return ok(bw_train(index, call->positives, call->n_positives, call->negatives, call->n_negatives,
                       &call->options, model, stats, error));
}

static bool train_run(const call *call, const bw_index *index, relation *out, bw_error *error) {
    bw_train_stats stats;
    bw_model *model = NULL;
    bool done = relation_reserve(out, 1, error) && train(call, index, &model, &stats, error) &&
                training_cells(model, &stats, relation_row(out), error);
    bw_model_free(model);
    return done;
}

static bool refine_open(const call *call, const bw_index *index, opened *out, bw_error *error) {
    bw_model *model = NULL;
    bool done = train(call, index, &model, NULL, error) && open_model(index, model, 0, out, error);
    bw_model_free(model);
    return done;
}

static const parameter train_parameters[] = {
    {"positives", DUCKDB_TYPE_BIGINT, true},        {"negatives", DUCKDB_TYPE_BIGINT, true},
    {"query", DUCKDB_TYPE_UTINYINT, true},          {"query_fine", DUCKDB_TYPE_UTINYINT, true},
    {"learner", DUCKDB_TYPE_VARCHAR, false},        {"estimators", DUCKDB_TYPE_BIGINT, false},
    {"boxes", DUCKDB_TYPE_BIGINT, false},           {"random_negatives", DUCKDB_TYPE_BIGINT, false},
    {"negative_weight", DUCKDB_TYPE_DOUBLE, false}, {"seed", DUCKDB_TYPE_UBIGINT, false},
    {"prior", DUCKDB_TYPE_BOOLEAN, false},          {"rerank", DUCKDB_TYPE_BOOLEAN, false},
    {"guard", DUCKDB_TYPE_BOOLEAN, false},          END_OF_LIST};
const column train_columns[TRAIN_COLUMNS + 1] = {
    {"model", DUCKDB_TYPE_VARCHAR},         {"learner", DUCKDB_TYPE_VARCHAR},
    {"estimators", DUCKDB_TYPE_BIGINT},     {"boxes", DUCKDB_TYPE_BIGINT},
    {"terms", DUCKDB_TYPE_BIGINT},          {"positives", DUCKDB_TYPE_BIGINT},
    {"negatives", DUCKDB_TYPE_BIGINT},      {"random_negatives", DUCKDB_TYPE_BIGINT},
    {"held_out", DUCKDB_TYPE_BIGINT},       {"estimated_rows", DUCKDB_TYPE_DOUBLE},
    {"precision", DUCKDB_TYPE_DOUBLE},      {"precision_low", DUCKDB_TYPE_DOUBLE},
    {"precision_high", DUCKDB_TYPE_DOUBLE}, {"recall", DUCKDB_TYPE_DOUBLE},
    {"recall_low", DUCKDB_TYPE_DOUBLE},     {"recall_high", DUCKDB_TYPE_DOUBLE},
    {"fallback", DUCKDB_TYPE_BOOLEAN},      {"note", DUCKDB_TYPE_VARCHAR},
    {"milliseconds", DUCKDB_TYPE_DOUBLE},   END_OF_LIST};
static const column refine_columns[] = {{"id", DUCKDB_TYPE_BIGINT},
                                        {"votes", DUCKDB_TYPE_INTEGER},
                                        {"score", DUCKDB_TYPE_DOUBLE},
                                        {"learner", DUCKDB_TYPE_VARCHAR},
                                        END_OF_LIST};

static const table_function boxwood_train = {.name = "boxwood_train",
                                             .parameters = train_parameters,
                                             .columns = train_columns,
                                             .bind = train_bind,
                                             .run = train_run};
static const table_function boxwood_refine = {.name = "boxwood_refine",
                                              .parameters = train_parameters,
                                              .columns = refine_columns,
                                              .bind = train_bind,
                                              .open = refine_open};

/* ---- boxwood_explain ----------------------------------------------------------------------------------- */

static bool explain_row(relation *out, const bw_box_report *report, bool whole, bw_error *error) {
    uint64_t settled = report->blocks_pruned + report->blocks_contained + report->blocks_scanned;
    cell *row = relation_row(out);
    row[0].integer = whole ? NO_INTEGER : report->estimator;
    row[1].integer = whole ? NO_INTEGER : report->box;
    row[2].integer = report->ranges;
    row[3].real = report->estimated_rows;
    row[4].integer = (int64_t)report->rows;
    row[6].real = report->estimated_blocks;
    row[7].integer = (int64_t)report->blocks;
    row[8].integer = (int64_t)report->blocks_pruned;
    row[9].integer = (int64_t)report->blocks_outscored;
    row[10].integer = (int64_t)report->blocks_contained;
    row[11].integer = (int64_t)report->blocks_planes;
    row[12].integer = (int64_t)report->blocks_scanned;
    row[13].integer = (int64_t)report->fine_rows;
    row[14].integer = (int64_t)report->bytes;
    row[15].real = report->estimated_nanoseconds / 1e6;
    row[16].real = (double)report->nanoseconds / 1e6;
    row[17].integer = settled <= report->blocks && report->blocks <= settled + report->blocks_planes;
    return set_text(&row[5], report->path, error);
}

static bool explain_run(const call *call, const bw_index *index, relation *out, bw_error *error) {
    bw_model_info info;
    bw_box_report whole;
    bw_model_describe(call->model, &info);
    bw_box_report *reports = calloc(info.boxes ? info.boxes : 1, sizeof *reports);
    bool done = reports || fail_memory(error);
    done = done && ok(bw_explain(index, call->model, reports, &whole, error)) &&
           relation_reserve(out, (uint64_t)info.boxes + 1, error) && explain_row(out, &whole, true, error);
    for (uint32_t i = 0; done && i < info.boxes; i++) {
        done = explain_row(out, &reports[i], false, error);
    }
    free(reports);
    return done;
}

static const column explain_columns[] = {{"estimator", DUCKDB_TYPE_INTEGER},
                                         {"box", DUCKDB_TYPE_INTEGER},
                                         {"ranges", DUCKDB_TYPE_INTEGER},
                                         {"estimated_rows", DUCKDB_TYPE_DOUBLE},
                                         {"rows", DUCKDB_TYPE_BIGINT},
                                         {"path", DUCKDB_TYPE_VARCHAR},
                                         {"estimated_blocks", DUCKDB_TYPE_DOUBLE},
                                         {"blocks", DUCKDB_TYPE_BIGINT},
                                         {"blocks_pruned", DUCKDB_TYPE_BIGINT},
                                         {"blocks_outscored", DUCKDB_TYPE_BIGINT},
                                         {"blocks_contained", DUCKDB_TYPE_BIGINT},
                                         {"blocks_planes", DUCKDB_TYPE_BIGINT},
                                         {"blocks_scanned", DUCKDB_TYPE_BIGINT},
                                         {"fine_rows", DUCKDB_TYPE_BIGINT},
                                         {"bytes", DUCKDB_TYPE_BIGINT},
                                         {"estimated_milliseconds", DUCKDB_TYPE_DOUBLE},
                                         {"milliseconds", DUCKDB_TYPE_DOUBLE},
                                         {"complete", DUCKDB_TYPE_BOOLEAN},
                                         END_OF_LIST};

static const table_function boxwood_explain = {.name = "boxwood_explain",
                                               .parameters = model_parameters,
                                               .columns = explain_columns,
                                               .bind = search_bind,
                                               .run = explain_run};

/* ---- boxwood_boxes ------------------------------------------------------------------------------------- */

static bool boxes_bind(call *call, duckdb_bind_info info, bw_error *error) {
    return read_positional_model(info, &call->model, error);
}

static bool boxes_run(const call *call, const bw_index *index, relation *out, bw_error *error) {
    (void)index;
    bw_model_info info;
    bw_model_describe(call->model, &info);
    bw_range *ranges = calloc(info.ranges ? info.ranges : 1, sizeof *ranges);
    bool done = (ranges || fail_memory(error)) && relation_reserve(out, info.ranges, error);
    if (done) {
        bw_model_ranges(call->model, ranges);
    }
    for (uint32_t i = 0; done && i < info.ranges; i++) {
        cell *row = relation_row(out);
        row[0].integer = ranges[i].estimator;
        row[1].integer = ranges[i].box;
        row[2].integer = ranges[i].dim;
        row[3].integer = ranges[i].lo;
        row[4].integer = ranges[i].hi;
    }
    free(ranges);
    return done;
}

static const column boxes_columns[] = {{"estimator", DUCKDB_TYPE_INTEGER}, {"box", DUCKDB_TYPE_INTEGER},
                                       {"dim", DUCKDB_TYPE_INTEGER},       {"lo", DUCKDB_TYPE_INTEGER},
                                       {"hi", DUCKDB_TYPE_INTEGER},        END_OF_LIST};

static const table_function boxwood_boxes = {
    .name = "boxwood_boxes", .columns = boxes_columns, .bind = boxes_bind, .run = boxes_run};

const table_function *const table_functions[] = {&boxwood_info,
                                                 &boxwood_knn,
                                                 &boxwood_range,
                                                 &boxwood_train,
                                                 &boxwood_search,
                                                 &boxwood_count,
                                                 &boxwood_refine,
                                                 &boxwood_explain,
                                                 &boxwood_boxes,
                                                 &boxwood_live_scan,
                                                 NULL};
