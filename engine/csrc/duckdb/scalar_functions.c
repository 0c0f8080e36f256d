/* scalar_functions.c - boxwood_votes, boxwood_score, boxwood_distance, boxwood_sql, boxwood_knn_list and
 * boxwood_check, a chunk at a time.
 *
 * DuckDB hands over flat vectors. NULL in any argument gives NULL. */
#include "extension.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- arguments ----------------------------------------------------------------------------------------- */

typedef struct text {
    const char *data;
    size_t bytes;
} text;

typedef struct argument {
    const void *data;
    const uint64_t *valid;       /* NULL: all are */
    const uint8_t *bytes;        /* lists: their elements */
    const uint64_t *bytes_valid; /* NULL: all are */
} argument;

static argument argument_of(duckdb_data_chunk input, idx_t column, bool list) {
    duckdb_vector vector = duckdb_data_chunk_get_vector(input, column);
    argument a = {.data = duckdb_vector_get_data(vector), .valid = duckdb_vector_get_validity(vector)};
    if (list) {
        duckdb_vector child = duckdb_list_vector_get_child(vector);
        a.bytes = duckdb_vector_get_data(child);
        a.bytes_valid = duckdb_vector_get_validity(child);
    }
    return a;
}

static bool valid(const uint64_t *mask, idx_t row) {
    return !mask || (mask[row / 64] >> (row % 64) & 1);
}

static text text_at(const argument *a, idx_t row) {
    const duckdb_string_t *s = (const duckdb_string_t *)a->data + row;
    uint32_t bytes = s->value.inlined.length;
    bool inlined = bytes <= sizeof s->value.inlined.inlined;
    return (text){inlined ? s->value.inlined.inlined : s->value.pointer.ptr, bytes};
}

/* Rows of one text next to each other are the rule; in a constant's even the pointer is the same. */
static bool same_text(text a, text b) {
    return a.bytes == b.bytes && (a.data == b.data || memcmp(a.data, b.data, a.bytes) == 0);
}

/* The `dims` values of a row's list, of a code or a fine code, or NULL with the error. */
static const uint8_t *values_at(const argument *a, idx_t row, uint64_t dims, bw_error *error) {
    const char *what = dims == BW_DIMS ? "code" : "fine code";
    duckdb_list_entry entry = ((const duckdb_list_entry *)a->data)[row];
    if (entry.length != dims) {
        fail(error, "a list has %llu values: a %s has %llu", (unsigned long long)entry.length, what,
             (unsigned long long)dims);
        return NULL;
    }
    for (uint64_t i = 0; a->bytes_valid && i < dims; i++) {
        if (!valid(a->bytes_valid, entry.offset + i)) {
            fail(error, "a %s has a NULL at place %llu: %ss have %llu values", what,
                 (unsigned long long)i + 1, what, (unsigned long long)dims);
            return NULL;
        }
    }
    return a->bytes + entry.offset;
}

static const uint8_t *code_at(const argument *a, idx_t row, bw_error *error) {
    return values_at(a, row, BW_DIMS, error);
}

static void set_null(duckdb_vector output, idx_t row) {
    duckdb_vector_ensure_validity_writable(output);
    duckdb_validity_set_row_invalid(duckdb_vector_get_validity(output), row);
}

static void give_error(duckdb_function_info info, const char *function, const bw_error *error) {
    char message[MESSAGE_BYTES];
    duckdb_scalar_function_set_error(info, error_text(function, error, message));
}

/* The index in the folder of this name: bw_index_close. */
static bool open_at(text path, bw_index **index, bw_error *error) {
    *index = NULL;
    if (memchr(path.data, 0, path.bytes)) {
        return fail(error, "index is not the path of an index folder");
    }
    char *folder = malloc(path.bytes + 1);
    if (!folder) {
        return fail_memory(error);
    }
    memcpy(folder, path.data, path.bytes);
    folder[path.bytes] = 0;
    bool ok = bw_index_open(folder, index, error) == BW_OK;
    free(folder);
    return ok;
}

/* ---- models -------------------------------------------------------------------------------------------- */

/* A parsed model, shared by the chunks of all threads as long as they ask for the same text. */
typedef struct shared_model {
    bw_model *model;
    size_t holders; /* under the lock */
    size_t bytes;
    char text[];
} shared_model;

static pthread_mutex_t last_lock = PTHREAD_MUTEX_INITIALIZER;
static shared_model *last_model; /* the last one parsed in this process; held here too */

static void model_drop_locked(shared_model *shared) {
    if (shared && --shared->holders == 0) {
        bw_model_free(shared->model);
        free(shared);
    }
}

static void model_drop(shared_model *shared) {
    pthread_mutex_lock(&last_lock);
    model_drop_locked(shared);
    pthread_mutex_unlock(&last_lock);
}

/* Owned: model_drop. NULL with the error. */
static shared_model *model_of(text json, bw_error *error) {
    shared_model *shared = NULL;
    pthread_mutex_lock(&last_lock);
    if (last_model && same_text((text){last_model->text, last_model->bytes}, json)) {
        shared = last_model;
        shared->holders++;
    }
    pthread_mutex_unlock(&last_lock);
    if (shared) {
        return shared;
    }
    shared = malloc(sizeof *shared + json.bytes);
    if (!shared) {
        fail_memory(error);
        return NULL;
    }
    if (bw_model_from_json(json.data, json.bytes, &shared->model, error) != BW_OK) {
        free(shared);
        return NULL;
    }
    shared->holders = 2;
    shared->bytes = json.bytes;
    memcpy(shared->text, json.data, json.bytes);
    pthread_mutex_lock(&last_lock);
    model_drop_locked(last_model);
    last_model = shared;
    pthread_mutex_unlock(&last_lock);
    return shared;
}

/* ---- boxwood_votes(model, code), boxwood_score(model, code), boxwood_score(model, code, fine) ------------
 */

/* Rows of one model, gathered to be evaluated together: to their votes, or to their scores. */
typedef struct gathered {
    shared_model *shared;
    size_t rows;
    uint8_t *codes;
    uint8_t *fine; /* NULL: none were given */
    int32_t *votes;
    int64_t *scores; /* NULL: votes are wanted */
    idx_t *row;
} gathered;

static bool evaluate(gathered *g, void *output, bw_error *error) {
    bw_model_info info = {0};
    if (g->rows) {
        bw_model_describe(g->shared->model, &info);
        if (bw_model_evaluate(g->shared->model, g->codes, g->fine, g->rows, g->votes, g->scores, NULL,
                              error) != BW_OK) {
            return false;
        }
    }
    for (size_t i = 0; i < g->rows; i++) {
        if (g->scores) {
            ((double *)output)[g->row[i]] = ldexp((double)g->scores[i], -info.result_shift);
        } else {
            ((int32_t *)output)[g->row[i]] = g->votes[i];
        }
    }
    g->rows = 0;
    return true;
}

static void evaluate_rows(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output,
                          bool scores, const char *name) {
    bool has_fine = duckdb_data_chunk_get_column_count(input) > 2;
    argument model = argument_of(input, 0, false), code = argument_of(input, 1, true);
    argument fine = argument_of(input, has_fine ? 2 : 1, true);
    idx_t rows = duckdb_data_chunk_get_size(input);
    void *out = duckdb_vector_get_data(output);
    bw_error error = {0};
    text current = {NULL, 0};
    gathered g = {.codes = malloc((size_t)rows * BW_DIMS + 1),
                  .fine = has_fine ? malloc((size_t)rows * BW_FINE_DIMS + 1) : NULL,
                  .votes = malloc((size_t)rows * sizeof(int32_t) + 1),
                  .scores = scores ? malloc((size_t)rows * sizeof(int64_t) + 1) : NULL,
                  .row = malloc((size_t)rows * sizeof(idx_t) + 1)};
    bool ok = (g.codes && (g.fine || !has_fine) && g.votes && (g.scores || !scores) && g.row) ||
              fail_memory(&error);
    for (idx_t r = 0; ok && r < rows; r++) {
        if (!valid(model.valid, r) || !valid(code.valid, r) || !valid(fine.valid, r)) {
            set_null(output, r);
            continue;
        }
        text json = text_at(&model, r);
        if (!g.shared || !same_text(json, current)) {
            ok = evaluate(&g, out, &error);
            model_drop(g.shared);
            g.shared = ok ? model_of(json, &error) : NULL;
            ok = g.shared != NULL;
            current = json;
        }
        const uint8_t *values = ok ? code_at(&code, r, &error) : NULL;
        const uint8_t *second = values && has_fine ? values_at(&fine, r, BW_FINE_DIMS, &error) : values;
        ok = second != NULL;
        if (ok) {
            memcpy(g.codes + g.rows * BW_DIMS, values, BW_DIMS);
            if (has_fine) {
                memcpy(g.fine + g.rows * BW_FINE_DIMS, second, BW_FINE_DIMS);
            }
            g.row[g.rows++] = r;
        }
    }
    ok = ok && evaluate(&g, out, &error);
    model_drop(g.shared);
    free(g.codes);
    free(g.fine);
    free(g.votes);
    free(g.scores);
    free(g.row);
    if (!ok) {
        give_error(info, name, &error);
    }
}

static void votes(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    evaluate_rows(info, input, output, false, "boxwood_votes");
}

static void score(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    evaluate_rows(info, input, output, true, "boxwood_score");
}

/* ---- boxwood_sql(model) -------------------------------------------------------------------------------- */

static void sql(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    argument model = argument_of(input, 0, false);
    idx_t rows = duckdb_data_chunk_get_size(input);
    bw_error error = {0};
    text current = {NULL, 0};
    char *expression = NULL;
    bool ok = true;
    for (idx_t r = 0; ok && r < rows; r++) {
        if (!valid(model.valid, r)) {
            set_null(output, r);
            continue;
        }
        text json = text_at(&model, r);
        if (!expression || !same_text(json, current)) {
            shared_model *shared = model_of(json, &error);
            bw_free(expression);
            expression = NULL;
            ok = shared && bw_model_to_sql(shared->model, &expression, &error) == BW_OK;
            model_drop(shared);
            current = json;
        }
        if (ok) {
            duckdb_vector_assign_string_element(output, r, expression);
        }
    }
    bw_free(expression);
    if (!ok) {
        give_error(info, "boxwood_sql", &error);
    }
}

/* ---- boxwood_distance(code, code) ---------------------------------------------------------------------- */

static void distance(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    argument left = argument_of(input, 0, true), right = argument_of(input, 1, true);
    idx_t rows = duckdb_data_chunk_get_size(input);
    double *out = duckdb_vector_get_data(output);
    bw_error error = {0};
    for (idx_t r = 0; r < rows; r++) {
        if (!valid(left.valid, r) || !valid(right.valid, r)) {
            set_null(output, r);
            continue;
        }
        const uint8_t *a = code_at(&left, r, &error), *b = a ? code_at(&right, r, &error) : NULL;
        if (!b) {
            give_error(info, "boxwood_distance", &error);
            return;
        }
        int32_t sum = 0;
        for (int d = 0; d < BW_DIMS; d++) {
            sum += (a[d] - b[d]) * (a[d] - b[d]);
        }
        out[r] = sqrt(sum);
    }
}

/* ---- boxwood_knn_list(index, code, k), boxwood_knn_list(index, code, k, recall) ------------------------ */

/* Answers a core call may give: bounds the memory of a batch of queries. */
#define BATCH_ANSWERS 65536

/* Queries on one index with one k and recall, answered together. The core's single thread is enough: DuckDB
 * spreads the chunks. */
typedef struct batch {
    bw_index *index;
    uint32_t k;
    double recall;
    size_t queries;
    size_t most;
    idx_t row[BATCH_ANSWERS];
    uint8_t codes[BATCH_ANSWERS * BW_DIMS];
    int64_t ids[BATCH_ANSWERS];
    uint32_t distances[BATCH_ANSWERS];
    uint32_t counts[BATCH_ANSWERS];
} batch;

static bool answer(batch *b, duckdb_vector output, uint64_t *total, bw_error *error) {
    if (!b->queries) {
        return true;
    }
    bw_knn_options options = {.k = b->k, .threads = 1, .recall = b->recall};
    if (bw_knn(b->index, b->codes, b->queries, &options, b->ids, b->distances, b->counts, NULL, error) !=
        BW_OK) {
        return false;
    }
    uint64_t more = 0;
    for (size_t q = 0; q < b->queries; q++) {
        more += b->counts[q];
    }
    if (duckdb_list_vector_reserve(output, *total + more) != DuckDBSuccess ||
        duckdb_list_vector_set_size(output, *total + more) != DuckDBSuccess) {
        return fail_memory(error);
    }
    /* Reserving may move everything: look the vectors up afterwards. */
    duckdb_list_entry *entries = duckdb_vector_get_data(output);
    duckdb_vector child = duckdb_list_vector_get_child(output);
    int64_t *ids = duckdb_vector_get_data(duckdb_struct_vector_get_child(child, 0));
    double *distances = duckdb_vector_get_data(duckdb_struct_vector_get_child(child, 1));
    for (size_t q = 0; q < b->queries; q++) {
        entries[b->row[q]] = (duckdb_list_entry){*total, b->counts[q]};
        for (uint32_t i = 0; i < b->counts[q]; i++) {
            ids[*total + i] = b->ids[q * b->k + i];
            distances[*total + i] = sqrt(b->distances[q * b->k + i]);
        }
        *total += b->counts[q];
    }
    b->queries = 0;
    return true;
}

static void knn_list(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    argument index = argument_of(input, 0, false), code = argument_of(input, 1, true),
             k = argument_of(input, 2, false);
    bool has_recall = duckdb_data_chunk_get_column_count(input) > 3;
    argument recall = argument_of(input, has_recall ? 3 : 2, false);
    idx_t rows = duckdb_data_chunk_get_size(input);
    bw_error error = {0};
    text current = {NULL, 0};
    uint64_t total = 0;
    batch *b = malloc(sizeof *b);
    bool ok = b || fail_memory(&error);
    if (ok) {
        b->index = NULL;
        b->queries = 0;
        b->k = 0;
        b->recall = 1;
    }
    for (idx_t r = 0; ok && r < rows; r++) {
        if (!valid(index.valid, r) || !valid(code.valid, r) || !valid(k.valid, r) ||
            !valid(recall.valid, r)) {
            ((duckdb_list_entry *)duckdb_vector_get_data(output))[r] = (duckdb_list_entry){total, 0};
            set_null(output, r);
            continue;
        }
        int64_t wanted = ((const int64_t *)k.data)[r];
        double share = has_recall ? ((const double *)recall.data)[r] : 1;
        text path = text_at(&index, r);
        if (wanted < 1 || wanted > BW_MAX_K) {
            ok = fail(&error, "k is %lld: give 1 to %d neighbours", (long long)wanted, BW_MAX_K);
        } else if (!recall_ok(share)) {
            ok = fail(&error, RECALL_ADVICE, share);
        } else if (!b->index || (uint32_t)wanted != b->k || share != b->recall || b->queries == b->most ||
                   !same_text(path, current)) {
            ok = answer(b, output, &total, &error);
            if (ok && (!b->index || !same_text(path, current))) {
                bw_index_close(b->index);
                ok = open_at(path, &b->index, &error);
                current = path;
            }
            b->k = (uint32_t)wanted;
            b->recall = share;
            b->most = BATCH_ANSWERS / b->k;
        }
        const uint8_t *values = ok ? code_at(&code, r, &error) : NULL;
        ok = values != NULL;
        if (ok) {
            memcpy(b->codes + b->queries * BW_DIMS, values, BW_DIMS);
            b->row[b->queries++] = r;
        }
    }
    ok = ok && answer(b, output, &total, &error);
    if (b) {
        bw_index_close(b->index);
    }
    free(b);
    if (!ok) {
        give_error(info, "boxwood_knn_list", &error);
    }
}

/* ---- boxwood_check(index, uuid, generation) ------------------------------------------------------------ */

/* The caller says how to mend it, in words of its own. */
static void drop_advice(char *message) {
    static const char *const advice[] = {". Create the collection first, or run: boxwood repair",
                                         ". Run: boxwood repair"};
    size_t bytes = strlen(message);
    for (size_t i = 0; i < sizeof advice / sizeof *advice; i++) {
        size_t tail = strlen(advice[i]);
        if (bytes >= tail && strcmp(message + bytes - tail, advice[i]) == 0) {
            message[bytes - tail] = 0;
            return;
        }
    }
}

static bool is_uuid(text given, const uint8_t uuid[16]) {
    char own[UUID_BYTES];
    uuid_text(uuid, own);
    return given.bytes == UUID_BYTES - 1 && strncasecmp(given.data, own, UUID_BYTES - 1) == 0;
}

/* Whether this is the index of the collection, as its rows are now; if not, the error says why. */
static bool is_current(text path, text uuid, int64_t generation, bw_error *error) {
    bw_index *index;
    bw_index_info about;
    if (!open_at(path, &index, error)) {
        return false;
    }
    int32_t status = bw_index_describe(index, &about);
    bw_index_close(index);
    if (status != BW_OK) {
        return fail(error, "the index cannot be described");
    }
    int shown = (int)(path.bytes < 400 ? path.bytes : 400);
    while (shown > 0 && (size_t)shown < path.bytes && ((unsigned char)path.data[shown] & 0xC0) == 0x80) {
        shown--; /* not inside a character */
    }
    if (!is_uuid(uuid, about.uuid)) {
        return fail(error, "the index in '%.*s' belongs to another collection", shown, path.data);
    }
    if (generation < 0 || about.generation != (uint64_t)generation) {
        bool behind = generation >= 0 && about.generation < (uint64_t)generation;
        return fail(error, "the index in '%.*s' is %s the rows (generation %llu of %lld)", shown, path.data,
                    behind ? "behind" : "ahead of", (unsigned long long)about.generation,
                    (long long)generation);
    }
    return true;
}

static void check(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    (void)info; /* a problem is the answer, not an error */
    argument index = argument_of(input, 0, false), uuid = argument_of(input, 1, false),
             generation = argument_of(input, 2, false);
    idx_t rows = duckdb_data_chunk_get_size(input);
    for (idx_t r = 0; r < rows; r++) {
        bw_error error = {0};
        if (!valid(index.valid, r) || !valid(uuid.valid, r) || !valid(generation.valid, r) ||
            is_current(text_at(&index, r), text_at(&uuid, r), ((const int64_t *)generation.data)[r],
                       &error)) {
            set_null(output, r);
            continue;
        }
        drop_advice(error.message);
        drop_partial_character(error.message);
        duckdb_vector_assign_string_element(output, r, error.message);
    }
}

/* ---- registration -------------------------------------------------------------------------------------- */

enum { TEXT, CODE, NUMBER, SHARE };

static duckdb_logical_type argument_type(int kind) {
    duckdb_type base = kind == TEXT    ? DUCKDB_TYPE_VARCHAR
                       : kind == CODE  ? DUCKDB_TYPE_UTINYINT
                       : kind == SHARE ? DUCKDB_TYPE_DOUBLE
                                       : DUCKDB_TYPE_BIGINT;
    duckdb_logical_type type = duckdb_create_logical_type(base);
    if (kind == CODE) {
        duckdb_logical_type list = duckdb_create_list_type(type);
        duckdb_destroy_logical_type(&type);
        return list;
    }
    return type;
}

/* STRUCT(id BIGINT, distance DOUBLE)[] */
static duckdb_logical_type neighbours_type(void) {
    duckdb_logical_type members[] = {duckdb_create_logical_type(DUCKDB_TYPE_BIGINT),
                                     duckdb_create_logical_type(DUCKDB_TYPE_DOUBLE)};
    const char *names[] = {"id", "distance"};
    duckdb_logical_type pair = duckdb_create_struct_type(members, names, 2);
    duckdb_logical_type list = duckdb_create_list_type(pair);
    duckdb_destroy_logical_type(&pair);
    duckdb_destroy_logical_type(&members[0]);
    duckdb_destroy_logical_type(&members[1]);
    return list;
}

/* Takes the result type over. `reads_files`: the answer may change between two calls, so it is never kept.
 * Owned: duckdb_destroy_scalar_function. */
static duckdb_scalar_function make(const char *name, const int *arguments, int n, duckdb_logical_type result,
                                   duckdb_scalar_function_t body, bool reads_files) {
    duckdb_scalar_function function = duckdb_create_scalar_function();
    duckdb_scalar_function_set_name(function, name);
    for (int i = 0; i < n; i++) {
        duckdb_logical_type type = argument_type(arguments[i]);
        duckdb_scalar_function_add_parameter(function, type);
        duckdb_destroy_logical_type(&type);
    }
    duckdb_scalar_function_set_return_type(function, result);
    duckdb_scalar_function_set_function(function, body);
    if (reads_files) {
        duckdb_scalar_function_set_volatile(function);
    }
    duckdb_destroy_logical_type(&result);
    return function;
}

static duckdb_state add(duckdb_connection connection, const char *name, const int *arguments, int n,
                        duckdb_logical_type result, duckdb_scalar_function_t body, bool reads_files) {
    duckdb_scalar_function function = make(name, arguments, n, result, body, reads_files);
    duckdb_state state = duckdb_register_scalar_function(connection, function);
    duckdb_destroy_scalar_function(&function);
    return state;
}

/* A function whose last argument may be left out. */
static duckdb_state add_set(duckdb_connection connection, const char *name, const int *arguments, int n,
                            duckdb_logical_type (*result)(void), duckdb_scalar_function_t body,
                            bool reads_files) {
    duckdb_scalar_function_set set = duckdb_create_scalar_function_set(name);
    duckdb_state state = DuckDBSuccess;
    for (int most = n - 1; most <= n && state == DuckDBSuccess; most++) {
        duckdb_scalar_function function = make(name, arguments, most, result(), body, reads_files);
        state = duckdb_add_scalar_function_to_set(set, function);
        duckdb_destroy_scalar_function(&function);
    }
    if (state == DuckDBSuccess) {
        state = duckdb_register_scalar_function_set(connection, set);
    }
    duckdb_destroy_scalar_function_set(&set);
    return state;
}

static duckdb_logical_type real_type(void) {
    return duckdb_create_logical_type(DUCKDB_TYPE_DOUBLE);
}

duckdb_state register_scalar_functions(duckdb_connection connection) {
    bool ok = add(connection, "boxwood_votes", (const int[]){TEXT, CODE}, 2,
                  duckdb_create_logical_type(DUCKDB_TYPE_INTEGER), votes, false) == DuckDBSuccess &&
              add(connection, "boxwood_distance", (const int[]){CODE, CODE}, 2,
                  duckdb_create_logical_type(DUCKDB_TYPE_DOUBLE), distance, false) == DuckDBSuccess &&
              add(connection, "boxwood_sql", (const int[]){TEXT}, 1,
                  duckdb_create_logical_type(DUCKDB_TYPE_VARCHAR), sql, false) == DuckDBSuccess &&
              add_set(connection, "boxwood_score", (const int[]){TEXT, CODE, CODE}, 3, real_type, score,
                      false) == DuckDBSuccess &&
              add_set(connection, "boxwood_knn_list", (const int[]){TEXT, CODE, NUMBER, SHARE}, 4,
                      neighbours_type, knn_list, true) == DuckDBSuccess &&
              add(connection, "boxwood_check", (const int[]){TEXT, TEXT, NUMBER}, 3,
                  duckdb_create_logical_type(DUCKDB_TYPE_VARCHAR), check, true) == DuckDBSuccess;
    return ok ? DuckDBSuccess : DuckDBError;
}
