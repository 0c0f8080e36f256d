/* scalar.h - what the files with scalar functions share: reading a chunk's arguments, and their types.
 *
 * DuckDB hands over flat vectors. */
#ifndef BOXWOOD_SCALAR_H
#define BOXWOOD_SCALAR_H

#include "extension.h"

#include <string.h>

typedef struct text {
    const char *data;
    size_t bytes;
} text;

typedef struct argument {
    const void *data;
    const uint64_t *valid;          /* NULL: all are */
    const void *elements;           /* lists: their elements, bytes of codes or 64-bit ids */
    const uint64_t *elements_valid; /* NULL: all are */
} argument;

argument argument_in(duckdb_vector vector, bool list);
argument argument_of(duckdb_data_chunk input, idx_t column, bool list);

static inline bool valid(const uint64_t *mask, idx_t row) {
    return !mask || (mask[row / 64] >> (row % 64) & 1);
}

static inline bool has(const argument *a, idx_t row) {
    return valid(a->valid, row);
}

static inline int64_t integer_at(const argument *a, idx_t row) {
    return ((const int64_t *)a->data)[row];
}

static inline double real_at(const argument *a, idx_t row) {
    return ((const double *)a->data)[row];
}

static inline bool flag_at(const argument *a, idx_t row) {
    return ((const bool *)a->data)[row];
}

static inline duckdb_list_entry list_at(const argument *a, idx_t row) {
    return ((const duckdb_list_entry *)a->data)[row];
}

text text_at(const argument *a, idx_t row);

/* Rows of one text next to each other are the rule; in a constant's even the pointer is the same. */
static inline bool same_text(text a, text b) {
    return a.bytes == b.bytes && (a.data == b.data || memcmp(a.data, b.data, a.bytes) == 0);
}

/* The `dims` values of a row's list, of a code or a fine code, or NULL with the error. */
const uint8_t *values_at(const argument *a, idx_t row, uint64_t dims, bw_error *error);
/* A row's list of ids; a NULL one is empty. False with the error where an id is NULL. `name` is for that. */
bool ids_at(const argument *a, idx_t row, const char *name, const int64_t **ids, size_t *n, bw_error *error);

void give_error(duckdb_function_info info, const char *function, const bw_error *error);

/* The index in the folder of this name: bw_index_close. */
bool open_at(text path, bw_index **index, bw_error *error);

/* The same where it is that of the collection `uuid` and has its rows up to this generation; otherwise the
 * error says why, without advice. */
bool open_checked(text path, text uuid, int64_t generation, bw_index **index, bw_error *error);

/* A parsed model, shared by the chunks of all threads as long as they ask for the same text. Owned:
 * model_drop, which takes NULL too. */
typedef struct shared_model shared_model;
shared_model *model_of(text json, bw_error *error);
const bw_model *model_in(const shared_model *shared);
void model_drop(shared_model *shared);

/* ---- sets of ids (id_set.c) ---------------------------------------------------------------------------- */

/* A set of ids as it lies in a BLOB: of words of 64 ids, all of a range or a hash table of those that are not
 * empty. */
typedef struct id_set {
    bool all; /* every id is in it: SQL's NULL */
    bool hashed;
    uint64_t first; /* of a range: the first word */
    uint64_t n;     /* words, or places in the table: a power of two */
    const char *words;
} id_set;

/* False with the error where the bytes are not what boxwood_ids gives. */
bool id_set_of(const argument *a, idx_t row, id_set *set, bw_error *error);
bool id_set_has(const id_set *set, int64_t id);

typedef struct id_word {
    uint64_t key;  /* id / 64 */
    uint64_t bits; /* 1 << id % 64, of ids next to each other */
} id_word;

/* Words in the order they came; the same key may come again. Zeros are an empty list. */
typedef struct id_words {
    id_word *words;
    uint64_t n;
    uint64_t room;
    bool failed; /* out of memory */
} id_words;

/* Negative ids, which no row has, are passed over. */
void id_words_add(id_words *words, int64_t id);
/* The words as a BLOB in a row of the vector. */
bool id_words_write(const id_words *words, duckdb_vector output, idx_t row, bw_error *error);

/* ---- registration -------------------------------------------------------------------------------------- */

typedef enum argument_kind { TEXT, CODE, IDS, INTEGER, UNSIGNED, REAL, FLAG, BLOB, ROWS } argument_kind;

#define MOST_ARGUMENTS 14
typedef struct scalar_function {
    const char *name;
    duckdb_scalar_function_t body;
    duckdb_logical_type (*result)(void);
    bool reads_files; /* the answer may change between two calls, so it is never kept */
    bool takes_null;  /* else a NULL argument gives NULL */
    argument_kind arguments[MOST_ARGUMENTS];
    int n;
} scalar_function;

/* Functions of one name next to each other are overloads of it. */
extern const scalar_function live_functions[]; /* live.c */
extern const size_t live_functions_count;
extern const scalar_function packed_functions[]; /* packed.c */
extern const size_t packed_functions_count;
bool register_id_set(duckdb_connection connection); /* id_set.c */

/* STRUCT(<columns>), or a list of these; columns end with a NULL name. */
duckdb_logical_type struct_type(const column *columns);
duckdb_logical_type struct_list_type(const column *columns);
duckdb_logical_type neighbours_type(void); /* STRUCT(id BIGINT, distance DOUBLE)[] */

#endif
