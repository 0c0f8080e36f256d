/* packed.c - rows of small appends, as boxwood.appended keeps them: their ids as one BLOB of 64-bit numbers,
 * little end first, their codes as one of bytes. */
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
        if (!has(&blob, r)) {
            set_null(output, r);
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

const scalar_function packed_functions[] = {{"boxwood_int64s", int64s, int64s_type, false, false, {BLOB}, 1},
                                            {"boxwood_bytes", bytes, bytes_type, false, false, {BLOB}, 1}};
const size_t packed_functions_count = sizeof packed_functions / sizeof *packed_functions;
