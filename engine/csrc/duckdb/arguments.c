/* arguments.c - parameters of table functions, checked and turned into C. */
#include "extension.h"

#include <stdlib.h>
#include <string.h>

/* The named parameter's value, or NULL where there is none. Owned: duckdb_destroy_value. */
static duckdb_value take(duckdb_bind_info info, const char *name, bool *is_null) {
    duckdb_value value = duckdb_bind_get_named_parameter(info, name);
    *is_null = value && duckdb_is_null_value(value);
    return value;
}

bool given(duckdb_bind_info info, const char *name) {
    duckdb_value value = duckdb_bind_get_named_parameter(info, name);
    bool found = value != NULL;
    duckdb_destroy_value(&value);
    return found;
}

bool given_null(duckdb_bind_info info, const char *name) {
    bool is_null;
    duckdb_value value = take(info, name, &is_null);
    duckdb_destroy_value(&value);
    return is_null;
}

static bool fail_null(const char *name, bw_error *error) {
    return fail(error, "%s is NULL: give a value", name);
}

bool read_integer(duckdb_bind_info info, const char *name, int64_t *value, bw_error *error) {
    bool is_null;
    duckdb_value v = take(info, name, &is_null);
    if (v && !is_null) {
        *value = duckdb_get_int64(v);
    }
    duckdb_destroy_value(&v);
    return !is_null || fail_null(name, error);
}

bool read_unsigned(duckdb_bind_info info, const char *name, uint64_t *value, bw_error *error) {
    bool is_null;
    duckdb_value v = take(info, name, &is_null);
    if (v && !is_null) {
        *value = duckdb_get_uint64(v);
    }
    duckdb_destroy_value(&v);
    return !is_null || fail_null(name, error);
}

bool read_real(duckdb_bind_info info, const char *name, double *value, bw_error *error) {
    bool is_null;
    duckdb_value v = take(info, name, &is_null);
    if (v && !is_null) {
        *value = duckdb_get_double(v);
    }
    duckdb_destroy_value(&v);
    return !is_null || fail_null(name, error);
}

bool read_flag(duckdb_bind_info info, const char *name, int32_t *value, bw_error *error) {
    bool is_null;
    duckdb_value v = take(info, name, &is_null);
    if (v && !is_null) {
        *value = duckdb_get_bool(v);
    }
    duckdb_destroy_value(&v);
    return !is_null || fail_null(name, error);
}

bool read_text(duckdb_bind_info info, const char *name, char **value, bw_error *error) {
    bool is_null;
    duckdb_value v = take(info, name, &is_null);
    char *text = v && !is_null ? duckdb_get_varchar(v) : NULL;
    bool ok = !v || is_null || text;
    duckdb_destroy_value(&v);
    if (is_null) {
        return fail_null(name, error);
    }
    if (!ok) {
        return fail_memory(error);
    }
    if (text) {
        *value = text;
    }
    return true;
}

/* A list's elements, each handed to `store`. */
static bool read_list(duckdb_bind_info info, const char *name, bool null_is_empty, size_t element,
                      void **values, size_t *n, void (*store)(void *to, duckdb_value from), bw_error *error) {
    bool is_null, ok = true;
    duckdb_value list = take(info, name, &is_null);
    if (is_null && !null_is_empty) {
        ok = fail_null(name, error);
    } else if (list) {
        idx_t size = is_null ? 0 : duckdb_get_list_size(list);
        char *memory = size < SIZE_MAX / element ? malloc(size ? (size_t)size * element : 1) : NULL;
        ok = memory || fail_memory(error);
        for (idx_t i = 0; ok && i < size; i++) {
            duckdb_value child = duckdb_get_list_child(list, i);
            if (!child || duckdb_is_null_value(child)) {
                ok =
                    fail(error, "%s has a NULL at place %llu: leave it out", name, (unsigned long long)i + 1);
            } else {
                store(memory + (size_t)i * element, child);
            }
            duckdb_destroy_value(&child);
        }
        if (ok) {
            *values = memory;
            *n = (size_t)size;
        } else {
            free(memory);
        }
    }
    duckdb_destroy_value(&list);
    return ok;
}

static void store_byte(void *to, duckdb_value from) {
    *(uint8_t *)to = duckdb_get_uint8(from);
}

static void store_id(void *to, duckdb_value from) {
    *(int64_t *)to = duckdb_get_int64(from);
}

bool read_bytes(duckdb_bind_info info, const char *name, uint8_t **values, size_t *n, bw_error *error) {
    void *memory = NULL;
    bool ok = read_list(info, name, false, sizeof(uint8_t), &memory, n, store_byte, error);
    if (memory) {
        *values = memory;
    }
    return ok;
}

bool read_code(duckdb_bind_info info, const char *name, size_t dims, const uint8_t **code, bw_error *error) {
    uint8_t *values = NULL;
    size_t n = 0;
    if (given_null(info, name)) {
        return true;
    }
    if (!read_bytes(info, name, &values, &n, error)) {
        return false;
    }
    if (values && n != dims) {
        free(values);
        return fail(error, "%s has %zu values: give a code of %zu, each 0 to 255", name, n, dims);
    }
    if (values) {
        *code = values;
    }
    return true;
}

bool read_ids(duckdb_bind_info info, const char *name, int64_t **values, size_t *n, bw_error *error) {
    void *memory = NULL;
    bool ok = read_list(info, name, true, sizeof(int64_t), &memory, n, store_id, error);
    if (memory) {
        *values = memory;
    }
    return ok;
}

/* The positional parameter. Owned: duckdb_free. */
static bool read_positional(duckdb_bind_info info, const char *what, char **value, bw_error *error) {
    duckdb_value v = duckdb_bind_get_parameter(info, 0);
    bool is_null = !v || duckdb_is_null_value(v);
    *value = is_null ? NULL : duckdb_get_varchar(v);
    duckdb_destroy_value(&v);
    if (is_null) {
        return fail(error, "%s", what);
    }
    return *value || fail_memory(error);
}

bool read_index(duckdb_bind_info info, call *call, bw_error *error) {
    return read_positional(info, "index is NULL: give the path of a collection's index folder", &call->path,
                           error) &&
           bw_index_open(call->path, &call->index, error) == BW_OK;
}

bool open_current(const call *call, bw_index **index, bw_error *error) {
    *index = NULL;
    return !call->path || bw_index_open(call->path, index, error) == BW_OK;
}

static bool parse_model(char *text, bw_model **model, bw_error *error) {
    bool ok = bw_model_from_json(text, strlen(text), model, error) == BW_OK;
    duckdb_free(text);
    return ok;
}

bool read_model(duckdb_bind_info info, bw_model **model, bw_error *error) {
    char *text = NULL;
    if (!read_text(info, "model", &text, error)) {
        return false;
    }
    if (!text) {
        return fail(error, "give model := a model document, as boxwood_train returns it");
    }
    return parse_model(text, model, error);
}

bool read_optional_model(duckdb_bind_info info, const char *name, bw_model **model, bw_error *error) {
    bool is_null;
    duckdb_value v = take(info, name, &is_null);
    char *text = v && !is_null ? duckdb_get_varchar(v) : NULL;
    bool absent = !v || is_null;
    duckdb_destroy_value(&v);
    return absent || (text ? parse_model(text, model, error) : fail_memory(error));
}

bool read_positional_model(duckdb_bind_info info, bw_model **model, bw_error *error) {
    char *text = NULL;
    return read_positional(info, "model is NULL: give a model document, as boxwood_train returns it", &text,
                           error) &&
           parse_model(text, model, error);
}
