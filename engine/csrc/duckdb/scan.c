/* scan.c - searches whose rows, or whose count, are worked out on DuckDB's own threads. */
#include "extension.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { SCAN_ID, SCAN_VOTES, SCAN_SCORE, SCAN_LEARNER, SCAN_COLUMNS };
#define SCAN_GENERATION SCAN_LEARNER /* in functions that are stamped */

static bool open_search(const call *call, opened *out, uint64_t *rows, bw_error *error) {
    bw_index *index = NULL;
    bw_index_info about;
    bool ok = open_current(call, &index, error);
    if (ok && bw_index_describe(index, &about) != BW_OK) {
        ok = fail(error, "the index cannot be described");
    }
    ok = ok && call->function->open(call, index, out, error);
    if (ok) {
        *rows = about.rows;
        out->generation = (int64_t)about.generation;
    }
    bw_index_close(index); /* the search keeps its own hold */
    return ok;
}

/* ---- rows ---------------------------------------------------------------------------------------------- */

typedef struct scan {
    opened of;
    double score_unit;
    atomic_bool told; /* the generation, by its own row */
} scan;

/* One thread's. Columns that the query does not use have no buffer: the core then does not compute them.
 * Other column numbers than ours are DuckDB's way to ask for rows without columns, as count(*) does. */
typedef struct worker {
    bw_batch batch;
    uint64_t next; /* first row of the batch not handed out yet */
    idx_t columns;
    idx_t column[SCAN_COLUMNS];
} worker;

static void scan_free(void *memory) {
    scan *scan = memory;
    bw_search_close(scan->of.search);
    free(scan);
}

void scan_init(duckdb_init_info info) {
    const call *call = duckdb_init_get_bind_data(info);
    bw_error error = {0};
    char text[MESSAGE_BYTES];
    uint64_t rows;
    scan *scan = calloc(1, sizeof *scan);
    bool ok = scan ? open_search(call, &scan->of, &rows, &error) : fail_memory(&error);
    if (!ok) {
        free(scan);
        duckdb_init_set_error(info, error_text(call->function->name, &error, text));
        return;
    }
    scan->score_unit = ldexp(1.0, -scan->of.score_shift);
    atomic_init(&scan->told, !call->function->stamped);
    uint64_t morsels = bw_search_morsels(scan->of.search);
    duckdb_init_set_max_threads(info, morsels ? morsels : 1);
    duckdb_init_set_init_data(info, scan, scan_free);
}

static void worker_free(void *memory) {
    worker *worker = memory;
    free(worker->batch.ids);
    free(worker->batch.votes);
    free(worker->batch.scores);
    free(worker);
}

/* A buffer of one column, once however often the column is asked for. */
static bool want(void **buffer, size_t element) {
    if (!*buffer) {
        *buffer = malloc((size_t)BW_MORSEL_ROWS * element);
    }
    return *buffer != NULL;
}

static bool want_column(worker *worker, idx_t column) {
    void *buffer;
    bool ok = true;
    if (column == SCAN_ID) {
        buffer = worker->batch.ids;
        ok = want(&buffer, sizeof(int64_t));
        worker->batch.ids = buffer;
    } else if (column == SCAN_VOTES) {
        buffer = worker->batch.votes;
        ok = want(&buffer, sizeof(int32_t));
        worker->batch.votes = buffer;
    } else if (column == SCAN_SCORE) {
        buffer = worker->batch.scores;
        ok = want(&buffer, sizeof(int64_t));
        worker->batch.scores = buffer;
    }
    return ok;
}

void scan_local_init(duckdb_init_info info) {
    const call *call = duckdb_init_get_bind_data(info);
    bw_error error = {0};
    char text[MESSAGE_BYTES];
    worker *worker = calloc(1, sizeof *worker);
    bool ok = worker != NULL;
    idx_t columns = duckdb_init_get_column_count(info);
    for (idx_t i = 0; ok && i < columns && i < SCAN_COLUMNS; i++) {
        worker->column[i] = duckdb_init_get_column_index(info, i);
        worker->columns = i + 1;
        ok = want_column(worker, worker->column[i]);
    }
    if (!ok) {
        if (worker) {
            worker_free(worker);
        }
        fail_memory(&error);
        duckdb_init_set_error(info, error_text(call->function->name, &error, text));
        return;
    }
    duckdb_init_set_init_data(info, worker, worker_free);
}

/* The row that tells the generation alone. */
static void tell_generation(const scan *scan, const worker *worker, duckdb_data_chunk output) {
    for (idx_t i = 0; i < worker->columns; i++) {
        duckdb_vector vector = duckdb_data_chunk_get_vector(output, i);
        if (worker->column[i] == SCAN_GENERATION) {
            *(int64_t *)duckdb_vector_get_data(vector) = scan->of.generation;
        } else if (worker->column[i] < SCAN_COLUMNS) {
            set_null(vector, 0);
        }
    }
    duckdb_data_chunk_set_size(output, 1);
}

void scan_next(duckdb_function_info info, duckdb_data_chunk output) {
    const call *call = duckdb_function_get_bind_data(info);
    scan *scan = duckdb_function_get_init_data(info);
    worker *worker = duckdb_function_get_local_init_data(info);
    if (!atomic_load(&scan->told) && !atomic_exchange(&scan->told, true)) {
        tell_generation(scan, worker, output);
        return;
    }
    if (worker->next == worker->batch.rows) {
        bw_error error = {0};
        worker->next = worker->batch.rows = 0;
        if (bw_search_next(scan->of.search, &worker->batch, NULL, &error) != BW_OK) {
            char text[MESSAGE_BYTES];
            worker->batch.rows = 0;
            duckdb_function_set_error(info, error_text(call->function->name, &error, text));
            return;
        }
    }
    idx_t rows = worker->batch.rows - worker->next, most = duckdb_vector_size();
    rows = rows < most ? rows : most;
    for (idx_t i = 0; i < worker->columns && rows; i++) {
        if (worker->column[i] >= SCAN_COLUMNS) {
            continue;
        }
        duckdb_vector vector = duckdb_data_chunk_get_vector(output, i);
        void *data = duckdb_vector_get_data(vector);
        if (worker->column[i] == SCAN_ID) {
            memcpy(data, worker->batch.ids + worker->next, (size_t)rows * sizeof(int64_t));
        } else if (worker->column[i] == SCAN_VOTES) {
            memcpy(data, worker->batch.votes + worker->next, (size_t)rows * sizeof(int32_t));
        } else if (worker->column[i] == SCAN_GENERATION && call->function->stamped) {
            int64_t *generations = data;
            for (idx_t r = 0; r < rows; r++) {
                generations[r] = scan->of.generation;
            }
        } else if (worker->column[i] == SCAN_LEARNER) {
            /* One text for all rows: copies of the first one's cell share its characters. */
            duckdb_string_t *texts = data;
            duckdb_vector_assign_string_element(vector, 0, scan->of.learner);
            for (idx_t r = 1; r < rows; r++) {
                texts[r] = texts[0];
            }
        } else {
            double *scores = data;
            for (idx_t r = 0; r < rows; r++) {
                scores[r] = (double)worker->batch.scores[worker->next + r] * scan->score_unit;
            }
        }
    }
    worker->next += rows;
    duckdb_data_chunk_set_size(output, rows);
}

/* ---- count --------------------------------------------------------------------------------------------- */

typedef struct count {
    opened of;
    uint64_t rows_total;
    atomic_int working; /* threads inside bw_search_next */
    atomic_bool told;
} count;

static void count_free(void *memory) {
    count *count = memory;
    bw_search_close(count->of.search);
    free(count);
}

void count_init(duckdb_init_info info) {
    const call *call = duckdb_init_get_bind_data(info);
    bw_error error = {0};
    char text[MESSAGE_BYTES];
    count *count = calloc(1, sizeof *count);
    bool ok = count ? open_search(call, &count->of, &count->rows_total, &error) : fail_memory(&error);
    if (!ok) {
        free(count);
        duckdb_init_set_error(info, error_text(call->function->name, &error, text));
        return;
    }
    atomic_init(&count->working, 0);
    atomic_init(&count->told, false);
    uint64_t morsels = bw_search_morsels(count->of.search);
    duckdb_init_set_max_threads(info, morsels ? morsels : 1);
    duckdb_init_set_init_data(info, count, count_free);
}

/* Each thread works until no morsel is left; the last one to come back gives the row. A thread that starts
 * after that finds nothing to do and the row given. */
void count_next(duckdb_function_info info, duckdb_data_chunk output) {
    const call *call = duckdb_function_get_bind_data(info);
    count *count = duckdb_function_get_init_data(info);
    bw_error error = {0};
    bw_batch batch = {0};
    atomic_fetch_add(&count->working, 1);
    int32_t status = bw_search_next(count->of.search, &batch, NULL, &error);
    bool last = atomic_fetch_sub(&count->working, 1) == 1;
    if (status != BW_OK) {
        char text[MESSAGE_BYTES];
        duckdb_function_set_error(info, error_text(call->function->name, &error, text));
        return;
    }
    if (!last || atomic_exchange(&count->told, true)) {
        duckdb_data_chunk_set_size(output, 0);
        return;
    }
    bw_stats stats;
    bw_search_stats(count->of.search, &stats);
    const uint64_t values[] = {stats.rows,          count->rows_total,      stats.blocks,
                               stats.blocks_pruned, stats.blocks_outscored, stats.blocks_contained,
                               stats.blocks_planes, stats.blocks_scanned,   stats.fine_rows,
                               stats.bytes};
    const idx_t integers = sizeof values / sizeof *values;
    for (idx_t c = 0; c < integers; c++) {
        *(int64_t *)duckdb_vector_get_data(duckdb_data_chunk_get_vector(output, c)) = (int64_t)values[c];
    }
    *(double *)duckdb_vector_get_data(duckdb_data_chunk_get_vector(output, integers)) =
        (double)stats.nanoseconds / 1e6;
    duckdb_data_chunk_set_size(output, 1);
}
