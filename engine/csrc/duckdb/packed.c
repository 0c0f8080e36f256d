/* packed.c - rows of small appends, as boxwood.appended keeps them: their ids as one BLOB of 64-bit numbers, little
 * end first, their codes as one of bytes. */
#include "scalar.h"

#include <string.h>

/* ---- boxwood_int64s(ids), boxwood_bytes(codes) --------------------------------------------------------- */

/* Lists of `size`-byte elements out of BLOBs. */
static void unpack(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output, size_t size,
                   const char *name) {
    argument blob = argument_of(input, 0, false);
    idx_t rows = duckdb_data_chunk_get_size(input);
    duckdb_list_entry *lists = duckdb_vector_get_data(output);
    bw_error error = {0};
    uint64_t total = 0;
    for (idx_t r = 0; r < rows; r++) {
        text packed = has(&blob, r) ? text_at(&blob, r) : (text){NULL, 0};
        uint64_t n = packed.bytes / size;
        if (packed.bytes % size) {
            fail(&error, "a BLOB of %llu bytes cannot hold numbers of %llu", (unsigned long long)packed.bytes,
                 (unsigned long long)size);
            give_error(info, name, &error);
            return;
        }
        if (duckdb_list_vector_reserve(output, total + n) != DuckDBSuccess ||
            duckdb_list_vector_set_size(output, total + n) != DuckDBSuccess) {
            fail_memory(&error);
            give_error(info, name, &error);
            return;
        }
        if (n) {
            char *elements = duckdb_vector_get_data(duckdb_list_vector_get_child(output));
            memcpy(elements + total * size, packed.data, packed.bytes);
        }
        lists[r] = (duckdb_list_entry){total, n};
        total += n;
    }
}

static void int64s(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    unpack(info, input, output, sizeof(int64_t), "boxwood_int64s");
}

static void bytes(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    unpack(info, input, output, 1, "boxwood_bytes");
}

/* ---- boxwood_among(ids, id) ---------------------------------------------------------------------------- */

enum { HASH_BITS = 12 };

/* A few ids, ascending, and bits by which most others are told from them. */
typedef struct few_ids {
    text packed;
    size_t n;
    uint64_t bits[(1 << HASH_BITS) / 64];
} few_ids;

static unsigned hash_of(int64_t id) {
    return (unsigned)((uint64_t)id * UINT64_C(0x9E3779B97F4A7C15) >> (64 - HASH_BITS));
}

static int64_t id_at(const few_ids *few, size_t i) {
    int64_t id; /* in a string, not aligned */
    memcpy(&id, few->packed.data + i * sizeof id, sizeof id);
    return id;
}

static void few_ids_of(few_ids *few, text packed) {
    *few = (few_ids){.packed = packed, .n = packed.bytes / sizeof(int64_t)};
    for (size_t i = 0; i < few->n; i++) {
        unsigned hash = hash_of(id_at(few, i));
        few->bits[hash / 64] |= UINT64_C(1) << hash % 64;
    }
}

static bool among(const few_ids *few, int64_t id) {
    unsigned hash = hash_of(id);
    if (!(few->bits[hash / 64] >> hash % 64 & 1)) {
        return false;
    }
    size_t low = 0, high = few->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (id_at(few, middle) < id) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < few->n && id_at(few, low) == id;
}

/* Whether an id is one of those, which are mostly the same for all rows. */
static void among_rows(duckdb_function_info info, duckdb_data_chunk input, duckdb_vector output) {
    argument packed = argument_of(input, 0, false), id = argument_of(input, 1, false);
    idx_t rows = duckdb_data_chunk_get_size(input);
    bool *out = duckdb_vector_get_data(output);
    few_ids few = {0};
    (void)info;
    for (idx_t r = 0; r < rows; r++) {
        if (!has(&packed, r) || !has(&id, r)) {
            out[r] = false; /* DuckDB makes it NULL */
            continue;
        }
        text now = text_at(&packed, r);
        if (!few.packed.data || !same_text(few.packed, now)) {
            few_ids_of(&few, now);
        }
        out[r] = among(&few, integer_at(&id, r));
    }
}

/* ---- registration -------------------------------------------------------------------------------------- */

static duckdb_logical_type list_type(duckdb_type element) {
    duckdb_logical_type type = duckdb_create_logical_type(element), list = duckdb_create_list_type(type);
    duckdb_destroy_logical_type(&type);
    return list;
}

static duckdb_logical_type int64s_type(void) {
    return list_type(DUCKDB_TYPE_BIGINT);
}

static duckdb_logical_type bytes_type(void) {
    return list_type(DUCKDB_TYPE_UTINYINT);
}

static duckdb_logical_type flag_type(void) {
    return duckdb_create_logical_type(DUCKDB_TYPE_BOOLEAN);
}

const scalar_function packed_functions[] = {
    {"boxwood_int64s", int64s, int64s_type, false, false, {BLOB}, 1},
    {"boxwood_bytes", bytes, bytes_type, false, false, {BLOB}, 1},
    {"boxwood_among", among_rows, flag_type, false, false, {BLOB, INTEGER}, 2}};
const size_t packed_functions_count = sizeof packed_functions / sizeof *packed_functions;
