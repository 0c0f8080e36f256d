/* extension.c - the entry point, errors, and the frame around every table function. */
#include "extension.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

duckdb_slot duckdb_slots[DUCKDB_SLOTS];

/* ---- errors -------------------------------------------------------------------------------------------- */

bool fail(bw_error *error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    error->code = BW_INVALID;
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    return false;
}

bool fail_memory(bw_error *error) {
    fail(error, "out of memory");
    error->code = BW_NOMEM;
    return false;
}

/* Bytes of the character that begins here, or 0 where none does (RFC 3629: no overlong forms, no surrogates,
 * nothing above U+10FFFF). The text ends with a NUL, which continues nothing. */
static size_t character_bytes(const unsigned char *text) {
    size_t bytes = text[0] < 0x80 ? 1 : text[0] < 0xC2 ? 0 : text[0] < 0xE0 ? 2 : text[0] < 0xF0 ? 3 : 4;
    if (text[0] > 0xF4) {
        return 0;
    }
    for (size_t i = 1; i < bytes; i++) {
        if ((text[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    bool refused = (text[0] == 0xE0 && text[1] < 0xA0) || (text[0] == 0xED && text[1] > 0x9F) ||
                   (text[0] == 0xF0 && text[1] < 0x90) || (text[0] == 0xF4 && text[1] > 0x8F);
    return refused ? 0 : bytes;
}

void keep_utf8(char *text) {
    char *end = text;
    for (const char *next = text; *next;) {
        size_t bytes = character_bytes((const unsigned char *)next);
        memmove(end, next, bytes);
        end += bytes;
        next += bytes ? bytes : 1;
    }
    *end = 0;
}

const char *error_text(const char *function, const bw_error *error, char text[MESSAGE_BYTES]) {
    snprintf(text, MESSAGE_BYTES, "%s: %s", function, error->message);
    keep_utf8(text);
    return text;
}

/* ---- relations ----------------------------------------------------------------------------------------- */

bool relation_reserve(relation *relation, uint64_t rows, bw_error *error) {
    if (rows > SIZE_MAX / sizeof(cell) / relation->width) {
        return fail_memory(error);
    }
    relation->cells = calloc(rows ? (size_t)rows : 1, (size_t)relation->width * sizeof(cell));
    if (!relation->cells) {
        return fail_memory(error);
    }
    return true;
}

cell *relation_row(relation *relation) {
    return relation->cells + relation->width * relation->rows++;
}

bool set_text(cell *cell, const char *text, bw_error *error) {
    size_t bytes = strlen(text) + 1;
    cell->text = malloc(bytes);
    if (!cell->text) {
        return fail_memory(error);
    }
    memcpy(cell->text, text, bytes);
    return true;
}

const char *uuid_text(const uint8_t uuid[16], char text[UUID_BYTES]) {
    const uint8_t *u = uuid;
    snprintf(text, UUID_BYTES, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0],
             u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
    return text;
}

static void relation_free(void *memory) {
    relation *relation = memory;
    for (uint64_t c = 0; relation->cells && c < relation->width; c++) {
        if (relation->columns[c].type == DUCKDB_TYPE_VARCHAR) {
            for (uint64_t r = 0; r < relation->rows; r++) {
                free(relation->cells[r * relation->width + c].text);
            }
        }
    }
    free(relation->cells);
    free(relation);
}

static void write_null(duckdb_vector vector, idx_t row) {
    duckdb_vector_ensure_validity_writable(vector);
    duckdb_validity_set_row_invalid(duckdb_vector_get_validity(vector), row);
}

void write_cell(duckdb_vector vector, void *data, idx_t row, duckdb_type type, const cell *cell) {
    bool null = type == DUCKDB_TYPE_VARCHAR  ? !cell->text
                : type == DUCKDB_TYPE_DOUBLE ? isnan(cell->real)
                                             : cell->integer == NO_INTEGER;
    if (null) {
        write_null(vector, row);
        return;
    }
    switch (type) {
    case DUCKDB_TYPE_BIGINT:
        ((int64_t *)data)[row] = cell->integer;
        break;
    case DUCKDB_TYPE_INTEGER:
        ((int32_t *)data)[row] = (int32_t)cell->integer;
        break;
    case DUCKDB_TYPE_BOOLEAN:
        ((bool *)data)[row] = cell->integer != 0;
        break;
    case DUCKDB_TYPE_DOUBLE:
        ((double *)data)[row] = cell->real;
        break;
    default:
        duckdb_vector_assign_string_element(vector, row, cell->text);
    }
}

/* ---- the frame of a table function --------------------------------------------------------------------- */

static void call_free(void *memory) {
    call *call = memory;
    if (call->path) {
        duckdb_free(call->path);
    }
    bw_index_close(call->index);
    bw_model_free(call->model);
    bw_model_free(call->within);
    free(call->ids);
    free(call->positives);
    free(call->negatives);
    free((void *)call->options.query);
    free((void *)call->options.query_fine);
    free(call);
}

/* What DuckDB plans for where rows stream: more than the one row of what search_model joins with them, fewer
 * than most tables have, so that joins with these read the table once and keep the matches in memory. */
#define USUAL_MATCHES 1000

static void table_bind(duckdb_bind_info info) {
    const table_function *function = duckdb_bind_get_extra_info(info);
    bw_error error = {0};
    char text[MESSAGE_BYTES];
    call *call = calloc(1, sizeof *call);
    bool ok = call || fail_memory(&error);
    if (ok) {
        call->function = function;
        ok = function->bind(call, info, &error);
    }
    if (!ok) {
        if (call) {
            call_free(call);
        }
        duckdb_bind_set_error(info, error_text(function->name, &error, text));
        return;
    }
    for (const column *c = function->columns; c->name; c++) {
        duckdb_logical_type type = duckdb_create_logical_type(c->type);
        duckdb_bind_add_result_column(info, c->name, type);
        duckdb_destroy_logical_type(&type);
    }
    if (function->open && !function->count) {
        duckdb_bind_set_cardinality(info, USUAL_MATCHES, false);
    }
    duckdb_bind_set_bind_data(info, call, call_free);
}

static void relation_init(duckdb_init_info info) {
    const call *call = duckdb_init_get_bind_data(info);
    bw_error error = {0};
    char text[MESSAGE_BYTES];
    bw_index *index = NULL;
    relation *relation = calloc(1, sizeof *relation);
    bool ok = relation || fail_memory(&error);
    if (ok) {
        relation->columns = call->function->columns;
        while (relation->columns[relation->width].name) {
            relation->width++;
        }
        ok = open_current(call, &index, &error) && call->function->run(call, index, relation, &error);
        bw_index_close(index);
    }
    if (!ok) {
        if (relation) {
            relation_free(relation);
        }
        duckdb_init_set_error(info, error_text(call->function->name, &error, text));
        return;
    }
    duckdb_init_set_init_data(info, relation, relation_free);
}

static void relation_next(duckdb_function_info info, duckdb_data_chunk output) {
    relation *relation = duckdb_function_get_init_data(info);
    idx_t rows = relation->rows - relation->next, most = duckdb_vector_size();
    rows = rows < most ? rows : most;
    for (idx_t c = 0; c < relation->width; c++) {
        duckdb_vector vector = duckdb_data_chunk_get_vector(output, c);
        void *data = duckdb_vector_get_data(vector);
        const cell *cells = relation->cells + relation->next * relation->width + c;
        for (idx_t r = 0; r < rows; r++) {
            write_cell(vector, data, r, relation->columns[c].type, cells + r * relation->width);
        }
    }
    relation->next += rows;
    duckdb_data_chunk_set_size(output, rows);
}

static duckdb_state register_table_function(duckdb_connection connection, const table_function *f) {
    duckdb_table_function function = duckdb_create_table_function();
    duckdb_logical_type varchar = duckdb_create_logical_type(DUCKDB_TYPE_VARCHAR);
    duckdb_table_function_set_name(function, f->name);
    duckdb_table_function_add_parameter(function, varchar);
    for (const parameter *p = f->parameters; p && p->name; p++) {
        duckdb_logical_type type = duckdb_create_logical_type(p->type);
        if (p->list) {
            duckdb_logical_type element = type;
            type = duckdb_create_list_type(element);
            duckdb_destroy_logical_type(&element);
        }
        duckdb_table_function_add_named_parameter(function, p->name, type);
        duckdb_destroy_logical_type(&type);
    }
    duckdb_table_function_set_extra_info(function, (void *)f, NULL);
    duckdb_table_function_set_bind(function, table_bind);
    if (!f->open) {
        duckdb_table_function_set_init(function, relation_init);
        duckdb_table_function_set_function(function, relation_next);
    } else if (f->count) {
        duckdb_table_function_set_init(function, count_init);
        duckdb_table_function_set_function(function, count_next);
    } else {
        duckdb_table_function_set_init(function, scan_init);
        duckdb_table_function_set_local_init(function, scan_local_init);
        duckdb_table_function_set_function(function, scan_next);
        duckdb_table_function_supports_projection_pushdown(function, true);
    }
    duckdb_state state = duckdb_register_table_function(connection, function);
    duckdb_destroy_logical_type(&varchar);
    duckdb_destroy_table_function(&function);
    return state;
}

static duckdb_state register_table_functions(duckdb_connection connection) {
    for (const table_function *const *f = table_functions; *f; f++) {
        if (register_table_function(connection, *f) != DuckDBSuccess) {
            return DuckDBError;
        }
    }
    return DuckDBSuccess;
}

/* ---- entry point --------------------------------------------------------------------------------------- */

/* DuckDB calls this when the extension is loaded into a database. */
__attribute__((visibility("default"))) bool boxwood_init_c_api(duckdb_extension_info info,
                                                               struct duckdb_extension_access *access);

bool boxwood_init_c_api(duckdb_extension_info info, struct duckdb_extension_access *access) {
    const void *slots = access->get_api(info, DUCKDB_API_VERSION);
    if (!slots) {
        return false; /* DuckDB has set the error */
    }
    memcpy(duckdb_slots, slots, sizeof duckdb_slots);

    const char *isa = getenv("BOXWOOD_FORCE_ISA");
    bw_error error = {0};
    if (isa && *isa && bw_isa_select(isa, &error) != BW_OK) {
        char text[MESSAGE_BYTES];
        access->set_error(info, error_text("BOXWOOD_FORCE_ISA", &error, text));
        return false;
    }
    duckdb_connection connection = NULL;
    if (duckdb_connect(*access->get_database(info), &connection) != DuckDBSuccess) {
        access->set_error(info, "boxwood: no connection to this database for registering the functions");
        return false;
    }
    bool ok = register_table_functions(connection) == DuckDBSuccess &&
              register_scalar_functions(connection) == DuckDBSuccess;
    duckdb_disconnect(&connection);
    if (!ok) {
        access->set_error(info, "boxwood: DuckDB refused one of the functions; is another version loaded?");
    }
    return ok;
}
