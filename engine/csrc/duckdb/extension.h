/* extension.h - what the files of the DuckDB extension share. */
#ifndef BOXWOOD_EXTENSION_H
#define BOXWOOD_EXTENSION_H

#include "boxwood.h"
#include "duckdb_slots.h"

/* ---- errors -------------------------------------------------------------------------------------------- */

/* Fills `error` and gives false, so that `return fail(...)` reads well. */
bool fail(bw_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool fail_memory(bw_error *error);

/* DuckDB's clients decode text strictly: bytes that are no UTF-8 are dropped, as of a character that was cut
 * in two, wherever they are. */
void keep_utf8(char *text);

#define MESSAGE_BYTES 640
/* "function: message" as valid UTF-8, whatever it was made of. Gives `text`. */
const char *error_text(const char *function, const bw_error *error, char text[MESSAGE_BYTES]);

/* k-NN: what a recall may be, and what to say when it is not; takes the recall. */
static inline bool recall_ok(double recall) {
    return recall > 0 && recall <= 1;
}
#define RECALL_ADVICE                                                                                        \
    "recall is %g: give 1 for exact answers, or the share of the true neighbours to be found, above 0 and "  \
    "below 1"

/* ---- table functions ----------------------------------------------------------------------------------- */

typedef struct column {
    const char *name;
    duckdb_type type;
} column;

typedef struct parameter {
    const char *name;
    duckdb_type type;
    bool list;
} parameter;

/* One call of a table function as it was bound: everything that any of them may need. Immutable after the
 * bind, so that any number of executions and threads may use it. */
typedef struct call {
    const struct table_function *function;
    char *path;      /* of the index folder; NULL for functions without an index. Owned: duckdb_free */
    bw_index *index; /* as it was at the bind */
    bw_model *model;
    uint8_t code[BW_DIMS]; /* k-NN: the query, */
    bool by_id;            /* or the id to take it from */
    int64_t like;
    uint32_t k;
    double recall;
    bw_model *within; /* NULL: all rows */
    int64_t *ids;     /* NULL: all rows; owned */
    size_t n_ids;
    bw_train_options options; /* its query and query_fine are owned */
    int64_t *positives;
    int64_t *negatives;
    size_t n_positives;
    size_t n_negatives;
} call;

/* Rows computed at once, to be handed out in chunks: row-major cells, one type a column. */
#define NO_INTEGER INT64_MIN
typedef union cell {
    int64_t integer; /* BIGINT, INTEGER, BOOLEAN; NO_INTEGER is SQL's NULL */
    double real;     /* NaN is SQL's NULL */
    char *text;      /* owned; NULL is SQL's NULL */
} cell;

typedef struct relation {
    const column *columns;
    uint64_t width;
    uint64_t rows;
    uint64_t next; /* first row not handed out yet */
    cell *cells;
} relation;

/* Room for `rows` rows, to be called once; relation_row appends one. */
bool relation_reserve(relation *relation, uint64_t rows, bw_error *error);
cell *relation_row(relation *relation);
bool set_text(cell *cell, const char *text, bw_error *error);
/* `data` is the vector's. */
void write_cell(duckdb_vector vector, void *data, idx_t row, duckdb_type type, const cell *cell);
void set_null(duckdb_vector output, idx_t row);

#define UUID_BYTES 37
/* 8-4-4-4-12 lower-case hexadecimal digits. Gives `text`. */
const char *uuid_text(const uint8_t uuid[16], char text[UUID_BYTES]);

/* A search that a function has opened, and what its rows are told with. */
typedef struct opened {
    bw_search *search;
    int32_t score_shift; /* scores are in units of 2^-score_shift */
    char learner[16];    /* the model's */
    int64_t generation;  /* the index's; set by whoever calls `open` */
} opened;

/* Besides the named parameters each takes one VARCHAR without a name: the index, for boxwood_boxes the model.
 */
typedef struct table_function {
    const char *name;
    const parameter *parameters; /* named ones, ended by a NULL name */
    const column *columns;       /* ended by a NULL name */
    bool (*bind)(call *call, duckdb_bind_info info, bw_error *error);

    /* Either of the two, with the index as it is at the execution: rows at once, */
    bool (*run)(const call *call, const bw_index *index, relation *out, bw_error *error);
    /* or a search whose rows stream on DuckDB's threads: columns id, votes, score and learner, or the first
     * three of these. out->search is owned by the caller. */
    bool (*open)(const call *call, const bw_index *index, opened *out, bw_error *error);
    bool count; /* of `open`: one row with the number and the statistics instead of the rows */
    /* of `open`: the fourth column is the index's generation, which a first row without anything else tells
     * even where no row is found */
    bool stamped;
} table_function;

extern const table_function *const table_functions[]; /* ended by NULL */

/* The index of the call as it is on disk now: a prepared statement is bound once and executed often. Owned:
 * bw_index_close. NULL for functions without an index. */
bool open_current(const call *call, bw_index **index, bw_error *error);

/* Callbacks for `open` functions (scan.c): rows, or their count. */
void scan_init(duckdb_init_info info);
void scan_local_init(duckdb_init_info info);
void scan_next(duckdb_function_info info, duckdb_data_chunk output);
void count_init(duckdb_init_info info);
void count_next(duckdb_function_info info, duckdb_data_chunk output);

duckdb_state register_scalar_functions(duckdb_connection connection);

/* ---- training (table_functions.c) -----------------------------------------------------------------------
 */

#define BW_MAX_RANDOM_NEGATIVES 100000
#define TRAIN_COLUMNS 19
extern const column train_columns[TRAIN_COLUMNS + 1]; /* ended by a NULL name */

/* The learner of this name, and so many random negatives as it takes by itself. */
bool choose_learner(const char *name, size_t bytes, bw_train_options *options, bw_error *error);
/* A number of things, `least` to `most`; the core checks too, but takes fewer bits. */
bool check_count(const char *name, int64_t value, int64_t least, int64_t most, uint32_t *count,
                 bw_error *error);
/* What a learner does not know is not passed over in silence. */
bool check_training(const bw_train_options *options, size_t n_positives, bw_error *error);
/* A model and what is to be said about it, as cells of train_columns, zeros before. Texts among them are
 * owned, also those of a failure: free. */
bool training_cells(const bw_model *model, const bw_train_stats *stats, cell cells[TRAIN_COLUMNS],
                    bw_error *error);

/* ---- reading arguments (arguments.c) ------------------------------------------------------------------- */

/* Each reads the parameter of the name; the absent and, where said, the NULL one leave *value as it is.
 * Otherwise NULL is an error. Lists are owned by the caller: free. */
bool given(duckdb_bind_info info, const char *name);
bool given_null(duckdb_bind_info info, const char *name);
bool read_integer(duckdb_bind_info info, const char *name, int64_t *value, bw_error *error);
bool read_unsigned(duckdb_bind_info info, const char *name, uint64_t *value, bw_error *error);
bool read_real(duckdb_bind_info info, const char *name, double *value, bw_error *error);
bool read_flag(duckdb_bind_info info, const char *name, int32_t *value, bw_error *error);
/* *value is owned: duckdb_free. */
bool read_text(duckdb_bind_info info, const char *name, char **value, bw_error *error);
bool read_bytes(duckdb_bind_info info, const char *name, uint8_t **values, size_t *n, bw_error *error);
/* A code of `dims` values; the absent and the NULL one leave *code as it is. */
bool read_code(duckdb_bind_info info, const char *name, size_t dims, const uint8_t **code, bw_error *error);
/* A NULL list reads as an empty one: it is what list() gives for no rows. */
bool read_ids(duckdb_bind_info info, const char *name, int64_t **values, size_t *n, bw_error *error);
bool read_index(duckdb_bind_info info, call *call, bw_error *error);
bool read_model(duckdb_bind_info info, bw_model **model, bw_error *error);
/* The absent and the NULL one leave *model as it is. */
bool read_optional_model(duckdb_bind_info info, const char *name, bw_model **model, bw_error *error);
bool read_positional_model(duckdb_bind_info info, bw_model **model, bw_error *error);

#endif
