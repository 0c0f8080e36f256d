/* live.c - exact answers: the rows of a collection as a transaction sees them. The index has those up to a
 * generation; what changed since, the codes table has. The macros of macros.sql read that within the
 * transaction, as one value, and these functions put both together:
 *   boxwood_live_knn, boxwood_live_search, boxwood_live_count, boxwood_live_train, boxwood_live_code,
 *   boxwood_live_fresh, boxwood_live_changed and boxwood_live_has.
 * The value is a STRUCT:
 *   index VARCHAR, uuid VARCHAR   the folder of the index, and the collection's uuid
 *   quantizer VARCHAR             fingerprint of the codes in the table; the index may be of older ones
 *   generation BIGINT             what the index has at least, as this transaction knows; -1: it has gone
 *                                 further than the transaction, whose rows are all among those below
 *   latest BIGINT                 the collection's generation, as this transaction knows
 *   ids BIGINT[]                  of rows written since then, which are there,
 *   codes UTINYINT[]              their codes, 32 values each,
 *   fine UTINYINT[]               and fine codes, 128 values each, or NULL
 *   deleted BIGINT[]              ids of rows deleted since then
 *   live BLOB                     boxwood_ids of the table of metadata: other rows do not count; NULL: all do
 * The transaction has begun before the index is opened here, so the index never lacks a row that is not among
 * these. It may have gone further than the transaction since `generation` was looked up; that is an error. */
#include "scalar.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the rows of a transaction ------------------------------------------------------------------------- */

enum {
    INDEX,
    UUID,
    QUANTIZER,
    GENERATION,
    LATEST,
    FRESH_IDS,
    FRESH_CODES,
    FRESH_FINE,
    DELETED,
    LIVE,
    MEMBERS
};

typedef struct rows_argument {
    const uint64_t *valid;
    argument member[MEMBERS];
} rows_argument;

static rows_argument rows_of(duckdb_data_chunk input, idx_t column) {
    duckdb_vector vector = duckdb_data_chunk_get_vector(input, column);
    rows_argument rows = {.valid = duckdb_vector_get_validity(vector)};
    for (idx_t m = 0; m < MEMBERS; m++) {
        rows.member[m] =
            argument_in(duckdb_struct_vector_get_child(vector, m), m >= FRESH_IDS && m <= DELETED);
    }
    return rows;
}

typedef struct transaction {
    text path;
    text uuid;
    int64_t generation;
    int64_t latest;
    char quantizer[BW_FINGERPRINT_BYTES]; /* empty: unknown */
    bw_index *index;                      /* without the changed rows; NULL: none yet */
    const int64_t *ids;
    size_t n;
    const uint8_t *codes;
    const uint8_t *fine; /* NULL: none */
    const int64_t *deleted;
    size_t n_deleted;
    id_set live;
} transaction;

static void transaction_close(transaction *t) {
    bw_index_close(t->index);
    t->index = NULL;
}

/* `n` codes of `dims` values, one after the other; NULL where there are none. */
static bool codes_at(const argument *a, idx_t row, size_t n, uint64_t dims, const uint8_t **codes,
                     bw_error *error) {
    *codes = NULL;
    if (!n || !has(a, row)) {
        return true;
    }
    if (n > UINT64_MAX / dims || list_at(a, row).length != n * dims) {
        return fail(error, "rows do not have %llu values for each id", (unsigned long long)dims);
    }
    *codes = values_at(a, row, n * dims, error);
    return *codes != NULL;
}

/* The index without the ids that changed. */
static bool leave_out(transaction *t, bw_index *index, bw_error *error) {
    size_t n = t->n + t->n_deleted;
    if (!n) {
        t->index = index;
        return true;
    }
    int64_t *changed = n <= SIZE_MAX / sizeof *changed ? malloc(n * sizeof *changed) : NULL;
    bool ok = changed || fail_memory(error);
    if (ok) {
        if (t->n) {
            memcpy(changed, t->ids, t->n * sizeof *changed);
        }
        if (t->n_deleted) {
            memcpy(changed + t->n, t->deleted, t->n_deleted * sizeof *changed);
        }
        ok = bw_index_without(index, changed, n, &t->index, error) == BW_OK;
        if (!ok) {
            t->index = NULL;
        }
    }
    free(changed);
    bw_index_close(index);
    return ok;
}

/* The index without any of its rows. */
static bool leave_out_all(transaction *t, bw_index *index, bw_error *error) {
    bw_index_info about;
    int64_t *ids = NULL;
    bool ok = bw_index_describe(index, &about) == BW_OK || fail(error, "the index cannot be described");
    uint64_t rows = ok ? about.rows + about.deleted : 0;
    if (ok) {
        ids = rows <= SIZE_MAX / sizeof *ids ? malloc((rows ? rows : 1) * sizeof *ids) : NULL;
        ok = ids || fail_memory(error);
    }
    ok = ok && bw_index_rows(index, 0, rows, ids, NULL, NULL, error) == BW_OK;
    if (ok) {
        size_t n = 0;
        for (uint64_t i = 0; i < rows; i++) { /* those that are dead have the id -1 */
            ids[n] = ids[i];
            n += ids[i] >= 0;
        }
        ok = bw_index_without(index, ids, n, &t->index, error) == BW_OK;
    }
    if (!ok) {
        t->index = NULL;
    }
    free(ids);
    bw_index_close(index);
    return ok;
}

/* Whether both are of one view of the index, which is without the changed rows. Lists of a constant are in
 * one place in all rows of a chunk. */
static bool same_view(const transaction *a, const transaction *b) {
    return same_text(a->path, b->path) && same_text(a->uuid, b->uuid) && a->generation == b->generation &&
           a->latest == b->latest && a->ids == b->ids && a->n == b->n && a->deleted == b->deleted &&
           a->n_deleted == b->n_deleted;
}

/* The index as it is now; owned. One that was brought up to date after boxwood_since looked may lack rows
 * that the transaction still sees, or have later ones. */
static bool open_now(const transaction *t, bw_index **index, bw_error *error) {
    bw_index_info about;
    if (!open_checked(t->path, t->uuid, t->generation, index, error)) {
        size_t length = strlen(error->message);
        snprintf(error->message + length, sizeof error->message - length,
                 ". Run: boxwood repair, or open the collection in Python");
        return false;
    }
    bool ok = bw_index_describe(*index, &about) == BW_OK || fail(error, "the index cannot be described");
    if (ok && t->generation >= 0 && (t->latest < 0 || about.generation > (uint64_t)t->latest)) {
        ok = fail(error, "the index was brought up to date while this statement ran: run it again");
    }
    if (!ok) {
        bw_index_close(*index);
        *index = NULL;
    }
    return ok;
}

/* The rows that this row of the chunk tells of, without the index. */
static bool transaction_read(transaction *t, const rows_argument *rows, idx_t r, bw_error *error) {
    const argument *m = rows->member;
    transaction now = {0};
    if (!valid(rows->valid, r) || !has(&m[INDEX], r) || !has(&m[UUID], r)) {
        return fail(error, "the rows of the collection are NULL");
    }
    if (!has(&m[GENERATION], r) || !has(&m[LATEST], r)) {
        return fail(error,
                    "boxwood.indexes does not say what the index has. Run: boxwood repair, or open the "
                    "collection in Python");
    }
    if (!ids_at(&m[FRESH_IDS], r, "ids", &now.ids, &now.n, error) ||
        !codes_at(&m[FRESH_CODES], r, now.n, BW_DIMS, &now.codes, error) ||
        !codes_at(&m[FRESH_FINE], r, now.n, BW_FINE_DIMS, &now.fine, error) ||
        !ids_at(&m[DELETED], r, "deleted", &now.deleted, &now.n_deleted, error) ||
        !id_set_of(&m[LIVE], r, &now.live, error)) {
        return false;
    }
    if (now.n && !now.codes) {
        return fail(error, "rows have ids without codes");
    }
    now.path = text_at(&m[INDEX], r);
    if (has(&m[QUANTIZER], r)) {
        text quantizer = text_at(&m[QUANTIZER], r);
        if (quantizer.bytes >= BW_FINGERPRINT_BYTES) {
            return fail(error, "the quantizer's fingerprint has %llu bytes: at most %d are possible",
                        (unsigned long long)quantizer.bytes, BW_FINGERPRINT_BYTES - 1);
        }
        memcpy(now.quantizer, quantizer.data, quantizer.bytes);
    }
    now.uuid = text_at(&m[UUID], r);
    now.generation = integer_at(&m[GENERATION], r);
    now.latest = integer_at(&m[LATEST], r);
    *t = now;
    return true;
}

/* The same with the index. That of the row before, which `t` has, is kept where it is the same. */
static bool transaction_open(transaction *t, const rows_argument *rows, idx_t r, bw_error *error) {
    transaction now;
    if (!transaction_read(&now, rows, r, error)) {
        return false;
    }
    if (t->index && same_view(t, &now)) {
        now.index = t->index;
        *t = now;
        return true;
    }
    transaction_close(t);
    bw_index *index;
    if (!open_now(&now, &index, error)) {
        return false;
    }
    *t = now;
    return now.generation < 0 ? leave_out_all(t, index, error) : leave_out(t, index, error);
}

/* Which of the changed rows the model matches, and how: each of the arrays has t->n entries, may be NULL, and
 * `match` is 0 for rows that are not live. No model matches all. */
static bool match_fresh(const transaction *t, const bw_model *model, int32_t *votes, int64_t *scores,
                        uint8_t *match, bw_error *error) {
    bw_model_info info;
    memset(match, 1, t->n);
    if (model && t->n && t->quantizer[0]) {
        bw_model_describe(model, &info);
        if (info.quantizer[0] && strncmp(info.quantizer, t->quantizer, BW_FINGERPRINT_BYTES) != 0) {
            return fail(error,
                        "the model is for codes of another quantizer ('%.31s', and not '%s'): train it "
                        "again on this collection",
                        info.quantizer, t->quantizer);
        }
    }
    if (model && t->n &&
        bw_model_evaluate(model, t->codes, t->fine, t->n, votes, scores, match, error) != BW_OK) {
        return false;
    }
    for (size_t i = 0; i < t->n; i++) {
        match[i] = match[i] && id_set_has(&t->live, t->ids[i]);
    }
    return true;
}

/* ---- lists of structs ---------------------------------------------------------------------------------- */

/* Room for `more` elements behind the `total` that the list vector has. */
static bool grow(duckdb_vector output, uint64_t total, uint64_t more, bw_error *error) {
    if (duckdb_list_vector_reserve(output, total + more) != DuckDBSuccess ||
        duckdb_list_vector_set_size(output, total + more) != DuckDBSuccess) {
        return fail_memory(error);
    }
    return true;
}

static void set_list(duckdb_vector output, idx_t row, uint64_t offset, uint64_t length) {
    ((duckdb_list_entry *)duckdb_vector_get_data(output))[row] = (duckdb_list_entry){offset, length};
}

/* Where the list vector's structs keep a member; after every growth anew. */
static void *member(duckdb_vector output, idx_t number) {
    return duckdb_vector_get_data(
        duckdb_struct_vector_get_child(duckdb_list_vector_get_child(output), number));
}

/* ---- boxwood_live_knn(rows, code, k, recall, within, ids) ---------------------------------------------- */

typedef struct neighbour {
    int64_t id;
    uint32_t distance; /* squared */
} neighbour;

static int nearer(const void *left, const void *right) {
    const neighbour *a = left, *b = right;
    if (a->distance != b->distance) {
        return a->distance < b->distance ? -1 : 1;
    }
    return (a->id > b->id) - (a->id < b->id);
}

/* The ids that the index has, and that are not live; *ids is owned: free. */
static bool dead_ids(const transaction *t, int64_t **ids, size_t *n, bw_error *error) {
    enum { PIECE = 65536 };
    bw_index_info about;
    *ids = NULL;
    *n = 0;
    if (t->live.all) {
        return true;
    }
    if (bw_index_describe(t->index, &about) != BW_OK) {
        return fail(error, "the index cannot be described");
    }
    uint64_t rows = about.rows + about.deleted;
    int64_t *piece = malloc(PIECE * sizeof *piece), *dead = NULL;
    size_t room = 0;
    bool ok = piece || fail_memory(error);
    for (uint64_t first = 0; ok && first < rows; first += PIECE) {
        uint64_t wanted = rows - first < PIECE ? rows - first : PIECE;
        ok = bw_index_rows(t->index, first, wanted, piece, NULL, NULL, error) == BW_OK;
        for (uint64_t i = 0; ok && i < wanted; i++) {
            if (piece[i] < 0 || id_set_has(&t->live, piece[i])) {
                continue;
            }
            if (*n == room) {
                size_t more = room ? 2 * room : 1024;
                int64_t *grown = more <= SIZE_MAX / sizeof *dead ? realloc(dead, more * sizeof *dead) : NULL;
                ok = grown || fail_memory(error);
                dead = grown ? grown : dead;
                room = grown ? more : room;
            }
            if (ok) {
                dead[(*n)++] = piece[i];
            }
        }
    }
    free(piece);
    if (!ok) {
        free(dead);
        return false;
    }
    *ids = dead;
    return true;
}

/* The index without the rows that are not live; owned. */
static bool only_live(const transaction *t, bw_index **index, bw_error *error) {
    int64_t *dead;
    size_t n;
    if (!dead_ids(t, &dead, &n, error)) {
        return false;
    }
    bool ok = bw_index_without(t->index, dead, n, index, error) == BW_OK;
    free(dead);
    return ok;
}

/* So many more than wanted are asked of the index at first, as a few of them may not be live. */
#define SPARE 16

/* The k nearest live rows of the index; `found` and the buffers have room for k + SPARE. */
static bool near_in_index(const transaction *t, const uint8_t *code, bw_knn_options *options, uint32_t k,
                          int64_t *ids, uint32_t *distances, neighbour *found, size_t *n, bw_error *error) {
    bw_index *live = NULL;
    const bw_index *index = t->index;
    bool ok = true;
    for (int attempt = 0; ok && attempt < 2; attempt++) {
        uint32_t got = 0;
        options->k = k;
        if (!t->live.all && !attempt) {
            options->k = k + SPARE < BW_MAX_K ? k + SPARE : BW_MAX_K;
        }
        ok = bw_knn(index, code, 1, options, ids, distances, &got, NULL, error) == BW_OK;
        *n = 0;
        for (uint32_t i = 0; ok && i < got; i++) {
            if (id_set_has(&t->live, ids[i])) {
                found[(*n)++] = (neighbour){ids[i], distances[i]};
            }
        }
        if (!ok || *n >= k || got < options->k || t->live.all) {
            break; /* all that the index has, or enough of it */
        }
        if (!attempt) {
            ok = only_live(t, &live, error);
            index = live;
        }
    }
    bw_index_close(live);
    return ok;
}

static int by_number(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

/* Of the rows that match, those stay that are among `n` ids. */
static bool match_ids(const transaction *t, const int64_t *ids, size_t n, uint8_t *match, bw_error *error) {
    int64_t *sorted = n < SIZE_MAX / sizeof *sorted ? malloc((n + 1) * sizeof *sorted) : NULL;
    if (!sorted) {
        return fail_memory(error);
    }
    if (n) {
        memcpy(sorted, ids, n * sizeof *sorted);
        qsort(sorted, n, sizeof *sorted, by_number);
    }
    for (size_t i = 0; i < t->n; i++) {
        match[i] = match[i] && n && bsearch(&t->ids[i], sorted, n, sizeof *sorted, by_number);
    }
    free(sorted);
    return true;
}

static bool knn_at(const transaction *t, const uint8_t *code, bw_knn_options *options, neighbour **found,
                   size_t *n, bw_error *error) {
    uint32_t k = options->k;
    size_t room = (size_t)k + SPARE;
    int64_t *ids = malloc(room * sizeof *ids);
    uint32_t *distances = malloc(room * sizeof *distances);
    uint8_t *match = malloc(t->n + 1);
    *found = malloc((room + t->n) * sizeof **found);
    bool ok = (ids && distances && match && *found) || fail_memory(error);
    ok = ok && near_in_index(t, code, options, k, ids, distances, *found, n, error) &&
         match_fresh(t, options->within, NULL, NULL, match, error) &&
         (!options->ids || !t->n || match_ids(t, options->ids, options->n_ids, match, error));
    for (size_t i = 0; ok && i < t->n; i++) {
        if (match[i]) {
            uint32_t sum = 0;
            for (int d = 0; d < BW_DIMS; d++) {
                int difference = code[d] - t->codes[i * BW_DIMS + (size_t)d];
                sum += (uint32_t)(difference * difference);
            }
            (*found)[(*n)++] = (neighbour){t->ids[i], sum};
        }
    }
    if (ok) {
        qsort(*found, *n, sizeof **found, nearer);
        *n = *n < k ? *n : k;
    }
    free(ids);
    free(distances);
    free(match);
    return ok;
}

static void live_knn(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    rows_argument of = rows_of(input, 0);
    argument code = argument_of(input, 1, true), k = argument_of(input, 2, false),
             recall = argument_of(input, 3, false), within = argument_of(input, 4, false),
             among = argument_of(input, 5, true);
    idx_t rows = duckdb_data_chunk_get_size(input);
    bw_error error = {0};
    transaction t = {0};
    uint64_t total = 0;
    bool ok = true;
    for (idx_t r = 0; ok && r < rows; r++) {
        const uint8_t *values = NULL;
        neighbour *found = NULL;
        shared_model *model = NULL;
        size_t n = 0;
        bw_knn_options options = {.threads = 1};
        if (!has(&code, r)) {
            ok = fail(&error, "there is nothing to search by: the text, image or code is NULL");
        } else if (!has(&k, r) || !has(&recall, r)) {
            ok = fail(&error, "%s is NULL: give a value", has(&k, r) ? "recall" : "k");
        } else if (integer_at(&k, r) < 1 || integer_at(&k, r) > BW_MAX_K) {
            ok = fail(&error, "k is %lld: give 1 to %d neighbours", (long long)integer_at(&k, r), BW_MAX_K);
        } else if (!recall_ok(real_at(&recall, r))) {
            ok = fail(&error, RECALL_ADVICE, real_at(&recall, r));
        } else {
            options.k = (uint32_t)integer_at(&k, r);
            options.recall = real_at(&recall, r);
            values = values_at(&code, r, BW_DIMS, &error);
            ok = values != NULL;
        }
        if (ok && has(&within, r)) {
            model = model_of(text_at(&within, r), &error);
            ok = model != NULL;
            options.within = ok ? model_in(model) : NULL;
        }
        if (ok && has(&among, r)) {
            static const int64_t none = 0; /* an empty list has no place of its own */
            ok = ids_at(&among, r, "ids", &options.ids, &options.n_ids, &error);
            options.ids = options.n_ids ? options.ids : &none;
        }
        ok = ok && transaction_open(&t, &of, r, &error) && knn_at(&t, values, &options, &found, &n, &error) &&
             grow(output, total, n, &error);
        if (ok) {
            int64_t *ids = member(output, 0);
            double *distances = member(output, 1);
            for (size_t i = 0; i < n; i++) {
                ids[total + i] = found[i].id;
                distances[total + i] = sqrt(found[i].distance);
            }
            set_list(output, r, total, n);
            total += n;
        }
        free(found);
        model_drop(model);
    }
    transaction_close(&t);
    if (!ok) {
        give_error(info, "boxwood_knn", &error);
    }
}

/* ---- boxwood_live_code(rows, id) ----------------------------------------------------------------------- */

/* Where the id is among the changed rows; t->n: nowhere. */
static size_t fresh_place(const transaction *t, int64_t id) {
    size_t i = 0;
    while (i < t->n && t->ids[i] != id) {
        i++;
    }
    return i;
}

static bool code_of(const transaction *t, int64_t id, uint8_t code[BW_DIMS], bw_error *error) {
    size_t fresh = fresh_place(t, id);
    uint8_t found = 0;
    if (fresh < t->n) {
        memcpy(code, t->codes + fresh * BW_DIMS, BW_DIMS);
        found = 1;
    } else if (bw_index_codes(t->index, &id, 1, code, &found, error) != BW_OK) {
        return false;
    }
    return (found && id_set_has(&t->live, id)) ||
           fail(error, "id %lld is not in the collection", (long long)id);
}

static void live_code(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    rows_argument of = rows_of(input, 0);
    argument id = argument_of(input, 1, false);
    idx_t rows = duckdb_data_chunk_get_size(input);
    bw_error error = {0};
    transaction t = {0};
    bool ok = grow(output, 0, (uint64_t)rows * BW_DIMS, &error);
    uint8_t *codes = ok ? duckdb_vector_get_data(duckdb_list_vector_get_child(output)) : NULL;
    for (idx_t r = 0; ok && r < rows; r++) {
        set_list(output, r, r * BW_DIMS, BW_DIMS);
        ok = has(&id, r) || fail(&error, "id is NULL: give a value");
        ok = ok && transaction_open(&t, &of, r, &error) &&
             code_of(&t, integer_at(&id, r), codes + r * BW_DIMS, &error);
    }
    transaction_close(&t);
    if (!ok) {
        give_error(info, "boxwood_knn", &error);
    }
}

static duckdb_logical_type code_type(void) {
    duckdb_logical_type value = duckdb_create_logical_type(DUCKDB_TYPE_UTINYINT),
                        list = duckdb_create_list_type(value);
    duckdb_destroy_logical_type(&value);
    return list;
}

/* ---- boxwood_live_search, boxwood_live_count(rows, model, threads), boxwood_live_fresh(rows, model) ---- */

typedef struct searched {
    rows_argument of;
    argument model;
    argument threads;
    bool has_threads;
    transaction t;
    shared_model *shared;
    bw_model_info about;
    int32_t *votes; /* of the changed rows, */
    int64_t *scores;
    uint8_t *match; /* those that are live */
} searched;

static searched search_begin(duckdb_data_chunk input) {
    searched s = {.of = rows_of(input, 0), .model = argument_of(input, 1, false)};
    s.has_threads = duckdb_data_chunk_get_column_count(input) > 2;
    s.threads = argument_of(input, s.has_threads ? 2 : 1, false);
    return s;
}

static void search_free(searched *s) {
    free(s->votes);
    free(s->scores);
    free(s->match);
    model_drop(s->shared);
    s->votes = NULL;
    s->scores = NULL;
    s->match = NULL;
    s->shared = NULL;
}

/* The rows, the model, and the changed rows that it matches. boxwood_live_fresh gives these alone, maybe long
 * after a search of the index beside it began, and does not ask how far that has gone since. */
static bool search_row(searched *s, idx_t r, bw_error *error) {
    search_free(s);
    if (!has(&s->model, r)) {
        return fail(error, "model is NULL: give a model document, as boxwood_train returns it");
    }
    if (s->has_threads && (!has(&s->threads, r) || integer_at(&s->threads, r) < 1)) {
        return fail(error, "give a number of threads, 1 or more");
    }
    s->shared = model_of(text_at(&s->model, r), error);
    if (!s->shared || !(s->has_threads ? transaction_open : transaction_read)(&s->t, &s->of, r, error)) {
        return false;
    }
    bw_model_describe(model_in(s->shared), &s->about);
    s->votes = malloc((s->t.n + 1) * sizeof *s->votes);
    s->scores = malloc((s->t.n + 1) * sizeof *s->scores);
    s->match = malloc(s->t.n + 1);
    return ((s->votes && s->scores && s->match) || fail_memory(error)) &&
           match_fresh(&s->t, model_in(s->shared), s->votes, s->scores, s->match, error);
}

static uint32_t threads_of(const searched *s, idx_t r) {
    int64_t threads = integer_at(&s->threads, r);
    return threads < 256 ? (uint32_t)threads : 256;
}

/* Those of `found` that are live, which may be NULL, and the changed rows, as the row's list. */
static bool write_matches(const searched *s, const bw_rows *found, duckdb_vector output, idx_t r,
                          uint64_t *total, bw_error *error) {
    uint64_t from_index = found ? found->rows : 0, n = *total;
    double unit = ldexp(1.0, -s->about.result_shift);
    if (!grow(output, *total, from_index + s->t.n, error)) {
        return false;
    }
    int64_t *ids = member(output, 0);
    int32_t *votes = member(output, 1);
    double *scores = member(output, 2);
    for (uint64_t i = 0; i < from_index; i++) {
        if (id_set_has(&s->t.live, found->ids[i])) {
            ids[n] = found->ids[i];
            votes[n] = found->votes[i];
            scores[n++] = (double)found->scores[i] * unit;
        }
    }
    for (size_t i = 0; i < s->t.n; i++) {
        if (s->match[i]) {
            ids[n] = s->t.ids[i];
            votes[n] = s->votes[i];
            scores[n++] = (double)s->scores[i] * unit;
        }
    }
    set_list(output, r, *total, n - *total);
    *total = n;
    return duckdb_list_vector_set_size(output, n) == DuckDBSuccess || fail_memory(error);
}

static void live_search(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    searched s = search_begin(input);
    idx_t rows = duckdb_data_chunk_get_size(input);
    bw_error error = {0};
    uint64_t total = 0;
    bool ok = true;
    for (idx_t r = 0; ok && r < rows; r++) {
        bw_rows *found = NULL;
        ok = search_row(&s, r, &error) &&
             (!s.has_threads || bw_search_run(s.t.index, model_in(s.shared), 0, threads_of(&s, r), NULL,
                                              &found, NULL, &error) == BW_OK) &&
             write_matches(&s, found, output, r, &total, &error);
        bw_rows_free(found);
    }
    search_free(&s);
    transaction_close(&s.t);
    if (!ok) {
        give_error(info, "boxwood_search", &error);
    }
}

static const column match_columns[] = {
    {"id", DUCKDB_TYPE_BIGINT}, {"votes", DUCKDB_TYPE_INTEGER}, {"score", DUCKDB_TYPE_DOUBLE}, {0}};

static duckdb_logical_type matches_type(void) {
    return struct_list_type(match_columns);
}

/* Those of the index that are live, by their ids alone. */
static bool count_live(const searched *s, int64_t *count, bw_error *error) {
    bw_search *search = NULL;
    bw_batch batch = {.ids = malloc(BW_MORSEL_ROWS * sizeof(int64_t))};
    bool ok = (batch.ids || fail_memory(error)) &&
              bw_search_open(s->t.index, model_in(s->shared), 0, &search, error) == BW_OK;
    *count = 0;
    do {
        ok = ok && bw_search_next(search, &batch, NULL, error) == BW_OK;
        for (uint64_t i = 0; ok && i < batch.rows; i++) {
            *count += id_set_has(&s->t.live, batch.ids[i]);
        }
    } while (ok && batch.rows);
    bw_search_close(search);
    free(batch.ids);
    return ok;
}

static bool count_row(const searched *s, idx_t r, int64_t *count, bw_error *error) {
    if (!s->t.live.all) {
        if (!count_live(s, count, error)) {
            return false;
        }
    } else {
        bw_stats stats;
        if (bw_search_run(s->t.index, model_in(s->shared), BW_COUNT_ONLY, threads_of(s, r), NULL, NULL,
                          &stats, error) != BW_OK) {
            return false;
        }
        *count = (int64_t)stats.rows;
    }
    for (size_t i = 0; i < s->t.n; i++) {
        *count += s->match[i];
    }
    return true;
}

static void live_count(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    searched s = search_begin(input);
    idx_t rows = duckdb_data_chunk_get_size(input);
    int64_t *out = duckdb_vector_get_data(output);
    bw_error error = {0};
    bool ok = true;
    for (idx_t r = 0; ok && r < rows; r++) {
        ok = search_row(&s, r, &error) && count_row(&s, r, &out[r], &error);
    }
    search_free(&s);
    transaction_close(&s.t);
    if (!ok) {
        give_error(info, "boxwood_count", &error);
    }
}

static duckdb_logical_type integer_type(void) {
    return duckdb_create_logical_type(DUCKDB_TYPE_BIGINT);
}

/* ---- boxwood_live_changed(rows), boxwood_live_has(changed, id) ----------------------------------------- */

/* The ids that the index must not answer for, as boxwood_ids has them: those that changed, and its rows that
 * are not live; NULL where there are none. Of an index that can be used: the generation is not -1.
 * DuckDB copies this beside every row of the index that a search finds, and it is small where `live` is not.
 */
static void live_changed(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    rows_argument of = rows_of(input, 0);
    idx_t rows = duckdb_data_chunk_get_size(input);
    bw_error error = {0};
    transaction t = {0};
    bool ok = true;
    for (idx_t r = 0; ok && r < rows; r++) {
        int64_t *dead = NULL;
        size_t n_dead = 0;
        ok = transaction_open(&t, &of, r, &error) && dead_ids(&t, &dead, &n_dead, &error);
        if (ok && !t.n && !t.n_deleted && !n_dead) {
            set_null(output, r);
        } else if (ok) {
            const int64_t *const ids[] = {t.ids, t.deleted, dead};
            const size_t n[] = {t.n, t.n_deleted, n_dead};
            id_words words = {0};
            for (size_t part = 0; part < sizeof ids / sizeof *ids; part++) {
                for (size_t i = 0; i < n[part]; i++) {
                    id_words_add(&words, ids[part][i]);
                }
            }
            ok = id_words_write(&words, output, r, &error);
            free(words.words);
        }
        free(dead);
    }
    transaction_close(&t);
    if (!ok) {
        give_error(info, "boxwood_search", &error);
    }
}

static duckdb_logical_type blob_type(void) {
    return duckdb_create_logical_type(DUCKDB_TYPE_BLOB);
}

/* Whether the index may answer for a row. The set is mostly the same for all rows. */
static void live_has(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    argument changed = argument_of(input, 0, false), id = argument_of(input, 1, false);
    idx_t rows = duckdb_data_chunk_get_size(input);
    bool *out = duckdb_vector_get_data(output);
    bw_error error = {0};
    id_set without = {0};
    text last = {NULL, 0};
    for (idx_t r = 0; r < rows; r++) {
        text now = has(&changed, r) ? text_at(&changed, r) : (text){NULL, 0};
        if (!r || now.data != last.data || now.bytes != last.bytes) {
            if (!id_set_of(&changed, r, &without, &error)) {
                give_error(info, "boxwood_live_has", &error);
                return;
            }
            last = now;
        }
        out[r] = has(&id, r) && (without.all || !id_set_has(&without, integer_at(&id, r)));
    }
}

static duckdb_logical_type flag_type(void) {
    return duckdb_create_logical_type(DUCKDB_TYPE_BOOLEAN);
}

/* ---- boxwood_live_train ---------------------------------------------------------------------------------
 */

enum {
    TRAIN_ROWS,
    TRAIN_POSITIVES,
    TRAIN_NEGATIVES,
    TRAIN_QUERY,
    TRAIN_QUERY_FINE,
    TRAIN_LEARNER,
    TRAIN_ESTIMATORS,
    TRAIN_BOXES,
    TRAIN_RANDOM_NEGATIVES,
    TRAIN_NEGATIVE_WEIGHT,
    TRAIN_SEED,
    TRAIN_PRIOR,
    TRAIN_RERANK,
    TRAIN_GUARD,
    TRAIN_ARGUMENTS
};

/* A code that may be NULL. */
static bool optional_code(const argument *a, idx_t row, uint64_t dims, const uint8_t **code,
                          bw_error *error) {
    if (has(a, row)) {
        *code = values_at(a, row, dims, error);
    }
    return !has(a, row) || *code;
}

/* A label that is not in the table of metadata is none of the collection's. */
static bool labels_live(const transaction *t, const int64_t *ids, size_t n, bw_error *error) {
    for (size_t i = 0; i < n; i++) {
        if (!id_set_has(&t->live, ids[i])) {
            return fail(error, "id %lld is not in the collection", (long long)ids[i]);
        }
    }
    return true;
}

/* All live rows, for where the index has too few of them to tell what the collection is like. */
typedef struct live_row {
    int64_t id;
    const uint8_t *code;
    const uint8_t *fine; /* NULL without rerank */
} live_row;

typedef struct live_rows {
    size_t n;
    live_row *rows; /* by id */
    int64_t *ids;   /* of the index; owned, as are */
    uint8_t *codes;
    uint8_t *fine;
} live_rows;

static void live_rows_free(live_rows *all) {
    free(all->rows);
    free(all->ids);
    free(all->codes);
    free(all->fine);
}

static int by_id(const void *left, const void *right) {
    int64_t a = ((const live_row *)left)->id, b = ((const live_row *)right)->id;
    return (a > b) - (a < b);
}

static bool live_rows_read(const transaction *t, const bw_index_info *about, bool rerank, live_rows *all,
                           bw_error *error) {
    size_t rows = (size_t)(about->rows + about->deleted);
    *all = (live_rows){.rows = malloc((rows + t->n + 1) * sizeof *all->rows),
                       .ids = malloc((rows + 1) * sizeof *all->ids),
                       .codes = malloc((rows + 1) * BW_DIMS),
                       .fine = rerank ? malloc((rows + 1) * BW_FINE_DIMS) : NULL};
    if (!all->rows || !all->ids || !all->codes || (rerank && !all->fine)) {
        return fail_memory(error);
    }
    if (rerank && (!about->fingerprints.fine[0] || (t->n && !t->fine))) {
        return fail(error, "rerank := true needs fine codes, and this collection has none");
    }
    if (rows && bw_index_rows(t->index, 0, rows, all->ids, all->codes, all->fine, error) != BW_OK) {
        return false;
    }
    for (size_t i = 0; i < rows; i++) {
        if (all->ids[i] >= 0 && id_set_has(&t->live, all->ids[i])) {
            all->rows[all->n++] = (live_row){all->ids[i], all->codes + i * BW_DIMS,
                                             rerank ? all->fine + i * BW_FINE_DIMS : NULL};
        }
    }
    for (size_t i = 0; i < t->n; i++) {
        if (id_set_has(&t->live, t->ids[i])) {
            all->rows[all->n++] =
                (live_row){t->ids[i], t->codes + i * BW_DIMS, rerank ? t->fine + i * BW_FINE_DIMS : NULL};
        }
    }
    qsort(all->rows, all->n, sizeof *all->rows, by_id);
    return true;
}

/* Codes of several rows, one after the other. */
typedef struct gathering {
    size_t n;
    uint8_t *codes;
    uint8_t *fine; /* NULL without rerank */
} gathering;

static bool gathering_begin(gathering *g, size_t most, bool rerank, bw_error *error) {
    g->codes = malloc((most + 1) * BW_DIMS);
    g->fine = rerank ? malloc((most + 1) * BW_FINE_DIMS) : NULL;
    return (g->codes && (g->fine || !rerank)) || fail_memory(error);
}

static void gather(gathering *g, const live_row *row) {
    memcpy(g->codes + g->n * BW_DIMS, row->code, BW_DIMS);
    if (g->fine) {
        memcpy(g->fine + g->n * BW_FINE_DIMS, row->fine, BW_FINE_DIMS);
    }
    g->n++;
}

enum { NO_LABEL, RIGHT, WRONG };

/* Labels, once each; `mark` has a place for each row. */
static bool gather_labels(const live_rows *all, const int64_t *ids, size_t n, uint8_t label, uint8_t *mark,
                          gathering *g, bw_error *error) {
    for (size_t i = 0; i < n; i++) {
        live_row key = {.id = ids[i]};
        const live_row *row = bsearch(&key, all->rows, all->n, sizeof key, by_id);
        if (!row) {
            return fail(error, "id %lld is not in the collection", (long long)ids[i]);
        }
        uint8_t *marked = &mark[row - all->rows];
        if (*marked && *marked != label) {
            return fail(error, "id %lld is both positive and negative: give it once", (long long)ids[i]);
        }
        *marked = label;
    }
    for (size_t i = 0; i < all->n; i++) {
        if (mark[i] == label) {
            gather(g, &all->rows[i]);
        }
    }
    return true;
}

/* Every so many-th of the rows that are no labels, by id. */
static void gather_randoms(const live_rows *all, const uint8_t *mark, size_t labels, uint32_t most,
                           gathering *g) {
    size_t others = all->n - labels, seen = 0;
    size_t step = most ? (others + most - 1) / most : 0;
    for (size_t i = 0; step && i < all->n; i++) {
        if (!mark[i] && seen++ % step == 0) {
            gather(g, &all->rows[i]);
        }
    }
}

static bool train_codes(const transaction *t, const bw_index_info *about, const int64_t *const ids[2],
                        const size_t n[2], const bw_train_options *options, bw_model **model,
                        bw_train_stats *stats, bw_error *error) {
    live_rows all = {0};
    gathering right = {0}, wrong = {0}, randoms = {0};
    bool rerank = options->rerank != 0;
    uint8_t *mark = NULL;
    bool ok = live_rows_read(t, about, rerank, &all, error) &&
              ((mark = calloc(all.n + 1, 1)) || fail_memory(error)) &&
              gathering_begin(&right, all.n, rerank, error) &&
              gathering_begin(&wrong, all.n, rerank, error) &&
              gathering_begin(&randoms, all.n, rerank, error) &&
              gather_labels(&all, ids[0], n[0], RIGHT, mark, &right, error) &&
              gather_labels(&all, ids[1], n[1], WRONG, mark, &wrong, error);
    if (ok) {
        gather_randoms(&all, mark, right.n + wrong.n, options->random_negatives, &randoms);
        bw_labels labels = {.positives = right.codes,
                            .negatives = wrong.codes,
                            .randoms = randoms.codes,
                            .n_positives = right.n,
                            .n_negatives = wrong.n,
                            .n_randoms = randoms.n,
                            .positives_fine = right.fine,
                            .negatives_fine = wrong.fine,
                            .randoms_fine = randoms.fine,
                            .rows = all.n,
                            .quantizer = t->quantizer[0] ? t->quantizer : about->fingerprints.quantizer,
                            .fine_quantizer = about->fingerprints.fine};
        ok = bw_train_codes(&labels, options, model, stats, error) == BW_OK;
    }
    gathering *parts[] = {&right, &wrong, &randoms};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        free(parts[i]->codes);
        free(parts[i]->fine);
    }
    free(mark);
    live_rows_free(&all);
    return ok;
}

/* What a collection is like is learnt from the index, as long as that has so many times the rows that it
 * lacks. */
#define BACKGROUND_SHARE 4

static bool train_live(const transaction *t, const int64_t *const ids[2], const size_t n[2],
                       bw_train_options *options, bw_model **model, bw_train_stats *stats, bw_error *error) {
    bw_index_info about;
    uint64_t fresh = 0;
    if (bw_index_describe(t->index, &about) != BW_OK) {
        return fail(error, "the index cannot be described");
    }
    for (size_t i = 0; i < t->n; i++) {
        fresh += id_set_has(&t->live, t->ids[i]);
    }
    if (about.rows < BACKGROUND_SHARE * fresh) {
        return train_codes(t, &about, ids, n, options, model, stats, error);
    }
    options->given_ids = t->ids;
    options->given_codes = t->codes;
    options->given_fine = t->fine;
    options->n_given = t->n;
    return bw_train(t->index, ids[0], n[0], ids[1], n[1], options, model, stats, error) == BW_OK;
}

static bool train_at(const rows_argument *of, const argument *a, idx_t row, transaction *t, cell cells[],
                     bw_error *error) {
    static const struct {
        int place;
        const char *name;
    } needed[] = {{TRAIN_LEARNER, "learner"}, {TRAIN_ESTIMATORS, "estimators"},
                  {TRAIN_BOXES, "boxes"},     {TRAIN_NEGATIVE_WEIGHT, "negative_weight"},
                  {TRAIN_SEED, "seed"},       {TRAIN_PRIOR, "prior"},
                  {TRAIN_RERANK, "rerank"},   {TRAIN_GUARD, "guard"}};
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        if (!has(&a[needed[i].place], row)) {
            return fail(error, "%s is NULL: give a value", needed[i].name);
        }
    }
    bw_train_options options = {.negative_weight = real_at(&a[TRAIN_NEGATIVE_WEIGHT], row),
                                .seed = ((const uint64_t *)a[TRAIN_SEED].data)[row],
                                .prior = flag_at(&a[TRAIN_PRIOR], row),
                                .rerank = flag_at(&a[TRAIN_RERANK], row),
                                .guard = flag_at(&a[TRAIN_GUARD], row)};
    text learner = text_at(&a[TRAIN_LEARNER], row);
    const int64_t *positives, *negatives;
    size_t n_positives, n_negatives;
    if (!choose_learner(learner.data, learner.bytes, &options, error) ||
        !check_count("estimators", integer_at(&a[TRAIN_ESTIMATORS], row), 1, BW_MAX_ESTIMATORS,
                     &options.estimators, error) ||
        !check_count("boxes", integer_at(&a[TRAIN_BOXES], row), 0, BW_MAX_COVER_BOXES, &options.boxes,
                     error) ||
        (has(&a[TRAIN_RANDOM_NEGATIVES], row) &&
         !check_count("random_negatives", integer_at(&a[TRAIN_RANDOM_NEGATIVES], row), 0,
                      BW_MAX_RANDOM_NEGATIVES, &options.random_negatives, error)) ||
        !optional_code(&a[TRAIN_QUERY], row, BW_DIMS, &options.query, error) ||
        !optional_code(&a[TRAIN_QUERY_FINE], row, BW_FINE_DIMS, &options.query_fine, error) ||
        !ids_at(&a[TRAIN_POSITIVES], row, "positives", &positives, &n_positives, error) ||
        !ids_at(&a[TRAIN_NEGATIVES], row, "negatives", &negatives, &n_negatives, error) ||
        !check_training(&options, n_positives, error)) {
        return false;
    }
    if (!transaction_open(t, of, row, error) || !labels_live(t, positives, n_positives, error) ||
        !labels_live(t, negatives, n_negatives, error)) {
        return false;
    }
    const int64_t *const labels[2] = {positives, negatives};
    const size_t n[2] = {n_positives, n_negatives};
    bw_model *model = NULL;
    bw_train_stats stats;
    bool ok = train_live(t, labels, n, &options, &model, &stats, error) &&
              training_cells(model, &stats, cells, error);
    bw_model_free(model);
    return ok;
}

static void live_train(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    argument arguments[TRAIN_ARGUMENTS];
    rows_argument of = rows_of(input, TRAIN_ROWS);
    for (idx_t i = TRAIN_POSITIVES; i < TRAIN_ARGUMENTS; i++) {
        arguments[i] = argument_of(input, i, i <= TRAIN_QUERY_FINE);
    }
    idx_t rows = duckdb_data_chunk_get_size(input);
    bw_error error = {0};
    transaction t = {0};
    bool ok = true;
    for (idx_t r = 0; ok && r < rows; r++) {
        cell cells[TRAIN_COLUMNS] = {0};
        ok = train_at(&of, arguments, r, &t, cells, &error);
        for (idx_t c = 0; c < TRAIN_COLUMNS; c++) {
            duckdb_vector child = duckdb_struct_vector_get_child(output, c);
            if (ok) {
                write_cell(child, duckdb_vector_get_data(child), r, train_columns[c].type, &cells[c]);
            }
            if (train_columns[c].type == DUCKDB_TYPE_VARCHAR) {
                free(cells[c].text);
            }
        }
    }
    transaction_close(&t);
    if (!ok) {
        give_error(info, "boxwood_train", &error);
    }
}

static duckdb_logical_type train_type(void) {
    return struct_type(train_columns);
}

/* ---- registration -------------------------------------------------------------------------------------- */

const scalar_function live_functions[] = {
    {"boxwood_live_knn", live_knn, neighbours_type, true, true, {ROWS, CODE, INTEGER, REAL, TEXT, IDS}, 6},
    {"boxwood_live_code", live_code, code_type, true, true, {ROWS, INTEGER}, 2},
    {"boxwood_live_search", live_search, matches_type, true, true, {ROWS, TEXT, INTEGER}, 3},
    {"boxwood_live_fresh", live_search, matches_type, true, true, {ROWS, TEXT}, 2},
    {"boxwood_live_count", live_count, integer_type, true, true, {ROWS, TEXT, INTEGER}, 3},
    {"boxwood_live_changed", live_changed, blob_type, true, true, {ROWS}, 1},
    {"boxwood_live_has", live_has, flag_type, true, true, {BLOB, INTEGER}, 2},
    {"boxwood_live_train",
     live_train,
     train_type,
     true,
     true,
     {ROWS, IDS, IDS, CODE, CODE, TEXT, INTEGER, INTEGER, INTEGER, REAL, UNSIGNED, FLAG, FLAG, FLAG},
     TRAIN_ARGUMENTS}};
const size_t live_functions_count = sizeof live_functions / sizeof *live_functions;
