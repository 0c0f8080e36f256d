/* scalar_functions.c - reading arguments; boxwood_votes, boxwood_score, boxwood_distance,
 * boxwood_sql and boxwood_check, a chunk at a time; and how scalar functions are registered. */
#include "scalar.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- arguments ----------------------------------------------------------------------------------------- */

argument argument_in(duckdb_vector vector, bool list) {
    argument a = {.data = duckdb_vector_get_data(vector), .valid = duckdb_vector_get_validity(vector)};
    if (list) {
        duckdb_vector child = duckdb_list_vector_get_child(vector);
        a.elements = duckdb_vector_get_data(child);
        a.elements_valid = duckdb_vector_get_validity(child);
    }
    return a;
}

argument argument_of(duckdb_data_chunk input, idx_t column, bool list) {
    return argument_in(duckdb_data_chunk_get_vector(input, column), list);
}

text text_at(const argument *a, idx_t row) {
    const duckdb_string_t *s = (const duckdb_string_t *)a->data + row;
    uint32_t bytes = s->value.inlined.length;
    bool inlined = bytes <= sizeof s->value.inlined.inlined;
    return (text){inlined ? s->value.inlined.inlined : s->value.pointer.ptr, bytes};
}

const uint8_t *values_at(const argument *a, idx_t row, uint64_t dims, bw_error *error) {
    const char *what = dims == BW_FINE_DIMS ? "fine code" : "code";
    duckdb_list_entry entry = list_at(a, row);
    if (entry.length != dims) {
        fail(error, "a list has %llu values: a %s has %llu", (unsigned long long)entry.length, what,
             (unsigned long long)dims);
        return NULL;
    }
    for (uint64_t i = 0; a->elements_valid && i < dims; i++) {
        if (!valid(a->elements_valid, entry.offset + i)) {
            fail(error, "a %s has a NULL at place %llu: %ss have %llu values", what,
                 (unsigned long long)i + 1, what, (unsigned long long)dims);
            return NULL;
        }
    }
    return (const uint8_t *)a->elements + entry.offset;
}

bool ids_at(const argument *a, idx_t row, const char *name, const int64_t **ids, size_t *n, bw_error *error) {
    duckdb_list_entry entry = has(a, row) ? list_at(a, row) : (duckdb_list_entry){0, 0};
    for (uint64_t i = 0; a->elements_valid && i < entry.length; i++) {
        if (!valid(a->elements_valid, entry.offset + i)) {
            return fail(error, "%s has a NULL at place %llu: leave it out", name, (unsigned long long)i + 1);
        }
    }
    *ids = entry.length ? (const int64_t *)a->elements + entry.offset : NULL;
    *n = (size_t)entry.length;
    return true;
}

static const uint8_t *code_at(const argument *a, idx_t row, bw_error *error) {
    return values_at(a, row, BW_DIMS, error);
}

void set_null(duckdb_vector output, idx_t row) {
    duckdb_vector_ensure_validity_writable(output);
    duckdb_validity_set_row_invalid(duckdb_vector_get_validity(output), row);
}

void give_error(duckdb_function_info info, const char *function, const bw_error *error) {
    char message[MESSAGE_BYTES];
    duckdb_scalar_function_set_error(info, error_text(function, error, message));
}

bool open_at(text path, bw_index **index, bw_error *error) {
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

struct shared_model {
    bw_model *model;
    size_t holders; /* under the lock */
    size_t bytes;
    char text[];
};

static pthread_mutex_t last_lock = PTHREAD_MUTEX_INITIALIZER;
static shared_model *last_model; /* the last one parsed in this process; held here too */

static void model_drop_locked(shared_model *shared) {
    if (shared && --shared->holders == 0) {
        bw_model_free(shared->model);
        free(shared);
    }
}

void model_drop(shared_model *shared) {
    pthread_mutex_lock(&last_lock);
    model_drop_locked(shared);
    pthread_mutex_unlock(&last_lock);
}

const bw_model *model_in(const shared_model *shared) {
    return shared->model;
}

shared_model *model_of(text json, bw_error *error) {
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
        if (!has(&index, r) || !has(&code, r) || !has(&k, r) || !has(&recall, r)) {
            ((duckdb_list_entry *)duckdb_vector_get_data(output))[r] = (duckdb_list_entry){total, 0};
            set_null(output, r);
            continue;
        }
        int64_t wanted = integer_at(&k, r);
        double share = has_recall ? real_at(&recall, r) : 1;
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

bool open_checked(text path, text uuid, int64_t generation, bw_index **index, bw_error *error) {
    bw_index_info about;
    if (!open_at(path, index, error)) {
        drop_advice(error->message);
        return false;
    }
    int shown = (int)(path.bytes < 400 ? path.bytes : 400);
    while (shown > 0 && (size_t)shown < path.bytes && ((unsigned char)path.data[shown] & 0xC0) == 0x80) {
        shown--; /* not inside a character */
    }
    bool ok = bw_index_describe(*index, &about) == BW_OK || fail(error, "the index cannot be described");
    if (ok && !is_uuid(uuid, about.uuid)) {
        ok = fail(error, "the index in '%.*s' belongs to another collection", shown, path.data);
    }
    if (ok && generation > 0 && about.generation < (uint64_t)generation) {
        ok = fail(error, "the index in '%.*s' is older than the rows (generation %llu of %lld)", shown,
                  path.data, (unsigned long long)about.generation, (long long)generation);
    }
    if (!ok) {
        bw_index_close(*index);
        *index = NULL;
    }
    return ok;
}

static void check(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    (void)info; /* a problem is the answer, not an error */
    argument index = argument_of(input, 0, false), uuid = argument_of(input, 1, false),
             generation = argument_of(input, 2, false);
    idx_t rows = duckdb_data_chunk_get_size(input);
    for (idx_t r = 0; r < rows; r++) {
        bw_error error = {0};
        bw_index *opened = NULL;
        if (!has(&index, r) || !has(&uuid, r) || !has(&generation, r) ||
            open_checked(text_at(&index, r), text_at(&uuid, r), integer_at(&generation, r), &opened,
                         &error)) {
            bw_index_close(opened);
            set_null(output, r);
            continue;
        }
        keep_utf8(error.message);
        duckdb_vector_assign_string_element(output, r, error.message);
    }
}

/* ---- boxwood_since(index, generation, indexed, checksum) ----------------------------------------------- */

/* From which generation on rows must be looked up in the codes table, in a transaction that sees the
 * collection at `generation`, and of its index that it had reached `indexed` with a manifest of this checksum
 * (0: unknown): from `indexed` on; from the first (-1) where the index has gone further than the transaction,
 * and so may lack what that still sees. */
static void since(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    argument index = argument_of(input, 0, false), generation = argument_of(input, 1, false),
             indexed = argument_of(input, 2, false), checksum = argument_of(input, 3, false);
    int64_t *results = duckdb_vector_get_data(output);
    idx_t rows = duckdb_data_chunk_get_size(input);
    for (idx_t r = 0; r < rows; r++) {
        bw_error error = {0};
        bw_index *opened = NULL;
        bw_index_info about;
        if (!has(&index, r) || !has(&generation, r) || !has(&indexed, r) || !has(&checksum, r)) {
            set_null(output, r);
            continue;
        }
        results[r] = integer_at(&indexed, r);
        /* What is wrong with the index is for those to say who use it. */
        if (!open_at(text_at(&index, r), &opened, &error) || bw_index_describe(opened, &about) != BW_OK) {
            continue;
        }
        bw_index_close(opened);
        if (about.generation > INT64_MAX || (int64_t)about.generation > integer_at(&generation, r)) {
            results[r] = -1;
        } else if ((int64_t)about.generation == integer_at(&indexed, r) && integer_at(&checksum, r) != 0 &&
                   (int64_t)about.checksum != integer_at(&checksum, r)) {
            fail(&error,
                 "the index is not the one that the database knows of: one of the two may have been put "
                 "back from a copy. Run: boxwood repair, or open the collection in Python");
            give_error(info, "boxwood_since", &error);
            return;
        }
    }
}

static duckdb_logical_type integer_type(void) {
    return duckdb_create_logical_type(DUCKDB_TYPE_BIGINT);
}

/* ---- registration -------------------------------------------------------------------------------------- */

static duckdb_logical_type argument_type(argument_kind kind);

static duckdb_logical_type list_of(duckdb_logical_type element) {
    duckdb_logical_type list = duckdb_create_list_type(element);
    duckdb_destroy_logical_type(&element);
    return list;
}

/* As macros.sql makes it; live.c says what is in it. */
static duckdb_logical_type rows_type(void) {
    static const struct {
        const char *name;
        argument_kind kind;
    } members[] = {{"index", TEXT},     {"uuid", TEXT}, {"quantizer", TEXT}, {"generation", INTEGER},
                   {"latest", INTEGER}, {"ids", IDS},   {"codes", CODE},     {"fine", CODE},
                   {"deleted", IDS},    {"live", BLOB}};
    enum { N = sizeof members / sizeof *members };
    duckdb_logical_type types[N];
    const char *names[N];
    for (int i = 0; i < N; i++) {
        types[i] = argument_type(members[i].kind);
        names[i] = members[i].name;
    }
    duckdb_logical_type type = duckdb_create_struct_type(types, names, N);
    for (int i = 0; i < N; i++) {
        duckdb_destroy_logical_type(&types[i]);
    }
    return type;
}

static duckdb_logical_type argument_type(argument_kind kind) {
    static const duckdb_type types[] = {[TEXT] = DUCKDB_TYPE_VARCHAR,     [CODE] = DUCKDB_TYPE_UTINYINT,
                                        [IDS] = DUCKDB_TYPE_BIGINT,       [INTEGER] = DUCKDB_TYPE_BIGINT,
                                        [UNSIGNED] = DUCKDB_TYPE_UBIGINT, [REAL] = DUCKDB_TYPE_DOUBLE,
                                        [FLAG] = DUCKDB_TYPE_BOOLEAN,     [BLOB] = DUCKDB_TYPE_BLOB};
    if (kind == ROWS) {
        return rows_type();
    }
    duckdb_logical_type type = duckdb_create_logical_type(types[kind]);
    return kind == CODE || kind == IDS ? list_of(type) : type;
}

#define MOST_MEMBERS TRAIN_COLUMNS

duckdb_logical_type struct_type(const column *columns) {
    duckdb_logical_type members[MOST_MEMBERS];
    const char *names[MOST_MEMBERS];
    idx_t n = 0;
    for (; columns[n].name; n++) {
        members[n] = duckdb_create_logical_type(columns[n].type);
        names[n] = columns[n].name;
    }
    duckdb_logical_type type = duckdb_create_struct_type(members, names, n);
    for (idx_t i = 0; i < n; i++) {
        duckdb_destroy_logical_type(&members[i]);
    }
    return type;
}

duckdb_logical_type struct_list_type(const column *columns) {
    return list_of(struct_type(columns));
}

static duckdb_logical_type votes_type(void) {
    return duckdb_create_logical_type(DUCKDB_TYPE_INTEGER);
}

static duckdb_logical_type real_type(void) {
    return duckdb_create_logical_type(DUCKDB_TYPE_DOUBLE);
}

static duckdb_logical_type text_type(void) {
    return duckdb_create_logical_type(DUCKDB_TYPE_VARCHAR);
}

/* STRUCT(id BIGINT, distance DOUBLE)[] */
static const column neighbour_columns[] = {{"id", DUCKDB_TYPE_BIGINT}, {"distance", DUCKDB_TYPE_DOUBLE}, {0}};

duckdb_logical_type neighbours_type(void) {
    return struct_list_type(neighbour_columns);
}

static const scalar_function row_functions[] = {
    {"boxwood_votes", votes, votes_type, false, false, {TEXT, CODE}, 2},
    {"boxwood_score", score, real_type, false, false, {TEXT, CODE}, 2},
    {"boxwood_score", score, real_type, false, false, {TEXT, CODE, CODE}, 3},
    {"boxwood_distance", distance, real_type, false, false, {CODE, CODE}, 2},
    {"boxwood_sql", sql, text_type, false, false, {TEXT}, 1},
    {"boxwood_knn_list", knn_list, neighbours_type, true, false, {TEXT, CODE, INTEGER}, 3},
    {"boxwood_knn_list", knn_list, neighbours_type, true, false, {TEXT, CODE, INTEGER, REAL}, 4},
    {"boxwood_check", check, text_type, true, false, {TEXT, TEXT, INTEGER}, 3},
    {"boxwood_since", since, integer_type, true, false, {TEXT, INTEGER, INTEGER, INTEGER}, 4}};

/* Owned: duckdb_destroy_scalar_function. */
static duckdb_scalar_function make(const scalar_function *f) {
    duckdb_scalar_function function = duckdb_create_scalar_function();
    duckdb_logical_type result = f->result();
    duckdb_scalar_function_set_name(function, f->name);
    for (int i = 0; i < f->n; i++) {
        duckdb_logical_type type = argument_type(f->arguments[i]);
        duckdb_scalar_function_add_parameter(function, type);
        duckdb_destroy_logical_type(&type);
    }
    duckdb_scalar_function_set_return_type(function, result);
    duckdb_scalar_function_set_function(function, f->body);
    if (f->reads_files) {
        duckdb_scalar_function_set_volatile(function);
    }
    if (f->takes_null) {
        duckdb_scalar_function_set_special_handling(function);
    }
    duckdb_destroy_logical_type(&result);
    return function;
}

/* Each name with all its overloads. */
static bool add_all(duckdb_connection connection, const scalar_function *functions, size_t n) {
    bool ok = true;
    for (size_t i = 0; ok && i < n;) {
        const char *name = functions[i].name;
        duckdb_scalar_function_set set = duckdb_create_scalar_function_set(name);
        for (; ok && i < n && strcmp(functions[i].name, name) == 0; i++) {
            duckdb_scalar_function function = make(&functions[i]);
            ok = duckdb_add_scalar_function_to_set(set, function) == DuckDBSuccess;
            duckdb_destroy_scalar_function(&function);
        }
        ok = ok && duckdb_register_scalar_function_set(connection, set) == DuckDBSuccess;
        duckdb_destroy_scalar_function_set(&set);
    }
    return ok;
}

duckdb_state register_scalar_functions(duckdb_connection connection) {
    bool ok = add_all(connection, row_functions, sizeof row_functions / sizeof *row_functions) &&
              add_all(connection, live_functions, live_functions_count) &&
              add_all(connection, packed_functions, packed_functions_count) && register_id_set(connection);
    return ok ? DuckDBSuccess : DuckDBError;
}
