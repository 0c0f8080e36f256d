/* id_set.c - sets of ids: the aggregate boxwood_ids, which makes one of a table's ids, and looking ids up.
 *
 * A BLOB of three numbers of 64 bits - 0 or 1, the first word, the number of words or places - and then
 * either the words of a range, 64 ids each, or a hash table of pairs (id / 64, word), whose empty places have
 * the word zero, with linear probing. Ids that are dense, as they mostly are, so take a bit each; a test is
 * one look. */
#include "scalar.h"

#include <stdlib.h>
#include <string.h>

enum { HEADER = 3 * sizeof(uint64_t) };

static uint64_t place_of(uint64_t key, uint64_t places) {
    key *= UINT64_C(0x9E3779B97F4A7C15);
    return (key ^ key >> 32) & (places - 1);
}

static uint64_t number_at(const char *bytes, uint64_t i) {
    uint64_t number;
    memcpy(&number, bytes + i * sizeof number, sizeof number);
    return number;
}

bool id_set_of(const argument *a, idx_t row, id_set *set, bw_error *error) {
    *set = (id_set){.all = !has(a, row)};
    if (set->all) {
        return true;
    }
    text blob = text_at(a, row);
    uint64_t width = sizeof(uint64_t);
    if (blob.bytes >= HEADER) {
        set->hashed = number_at(blob.data, 0) == 1;
        set->first = number_at(blob.data, 1);
        set->n = number_at(blob.data, 2);
        set->words = blob.data + HEADER;
        width *= set->hashed ? 2 : 1;
    }
    if (blob.bytes < HEADER || number_at(blob.data, 0) > 1 || (blob.bytes - HEADER) % width != 0 ||
        (blob.bytes - HEADER) / width != set->n || (set->hashed && (!set->n || (set->n & (set->n - 1))))) {
        return fail(error, "this is not a set of ids as boxwood_ids makes it");
    }
    return true;
}

bool id_set_has(const id_set *set, int64_t id) {
    uint64_t key = (uint64_t)id >> 6, bit = (uint64_t)id & 63;
    if (set->all) {
        return true;
    }
    if (!set->hashed) {
        return key - set->first < set->n && (number_at(set->words, key - set->first) >> bit & 1);
    }
    uint64_t place = place_of(key, set->n);
    for (uint64_t i = 0; i < set->n; i++, place = (place + 1) & (set->n - 1)) {
        uint64_t word = number_at(set->words, 2 * place + 1);
        if (!word || number_at(set->words, 2 * place) == key) {
            return word >> bit & 1;
        }
    }
    return false;
}

/* ---- making one ---------------------------------------------------------------------------------------- */

static bool room_for(id_words *words, uint64_t more) {
    if (words->failed || words->n + more <= words->room) {
        return !words->failed;
    }
    uint64_t room = words->room ? words->room : 64;
    while (room < words->n + more) {
        room *= 2;
    }
    id_word *grown =
        room <= SIZE_MAX / sizeof *grown ? realloc(words->words, (size_t)room * sizeof *grown) : NULL;
    words->failed = !grown;
    if (grown) {
        words->words = grown;
        words->room = room;
    }
    return !words->failed;
}

void id_words_add(id_words *words, int64_t id) {
    uint64_t key = (uint64_t)id >> 6, bit = UINT64_C(1) << (id & 63);
    if (id < 0) {
        return;
    }
    if (words->n && words->words[words->n - 1].key == key) {
        words->words[words->n - 1].bits |= bit;
    } else if (room_for(words, 1)) {
        words->words[words->n++] = (id_word){key, bit};
    }
}

static void fill_range(const id_words *words, uint64_t first, uint64_t *range) {
    for (uint64_t i = 0; i < words->n; i++) {
        range[words->words[i].key - first] |= words->words[i].bits;
    }
}

static void fill_table(const id_words *words, uint64_t places, uint64_t *table) {
    for (uint64_t i = 0; i < words->n; i++) {
        uint64_t place = place_of(words->words[i].key, places);
        while (table[2 * place + 1] && table[2 * place] != words->words[i].key) {
            place = (place + 1) & (places - 1);
        }
        table[2 * place] = words->words[i].key;
        table[2 * place + 1] |= words->words[i].bits;
    }
}

bool id_words_write(const id_words *words, duckdb_vector output, idx_t row, bw_error *error) {
    if (words->failed) {
        return fail_memory(error);
    }
    uint64_t first = UINT64_MAX, last = 0;
    for (uint64_t i = 0; i < words->n; i++) {
        first = words->words[i].key < first ? words->words[i].key : first;
        last = words->words[i].key > last ? words->words[i].key : last;
    }
    /* A table has at least as many free places as taken ones, of two numbers each. */
    uint64_t range = words->n ? last - first + 1 : 0, places = 2;
    while (places < 2 * words->n) {
        places *= 2;
    }
    bool hashed = range > 2 * places;
    uint64_t numbers = hashed ? 2 * places : range;
    if (numbers > (UINT32_MAX - HEADER) / sizeof(uint64_t)) {
        return fail(error, "the table has too many ids, too far apart, for a set of them");
    }
    uint64_t *blob = calloc((size_t)numbers + 3, sizeof *blob);
    if (!blob) {
        return fail_memory(error);
    }
    blob[0] = hashed;
    blob[1] = hashed || !range ? 0 : first;
    blob[2] = hashed ? places : range;
    if (hashed) {
        fill_table(words, places, blob + 3);
    } else {
        fill_range(words, first, blob + 3);
    }
    duckdb_vector_assign_string_element_len(output, row, (const char *)blob, HEADER + numbers * sizeof *blob);
    free(blob);
    return true;
}

/* ---- boxwood_ids(id) ----------------------------------------------------------------------------------- */

static idx_t state_size(duckdb_function_info info) {
    (void)info;
    return sizeof(id_words);
}

static void state_init(duckdb_function_info info, duckdb_aggregate_state state) {
    (void)info;
    *(id_words *)state = (id_words){0};
}

static void state_destroy(duckdb_aggregate_state *states, idx_t count) {
    for (idx_t i = 0; i < count; i++) {
        id_words *words = (id_words *)states[i];
        free(words->words);
        *words = (id_words){0};
    }
}

static void update(duckdb_function_info info, duckdb_data_chunk input, duckdb_aggregate_state *states) {
    (void)info;
    argument id = argument_of(input, 0, false);
    idx_t rows = duckdb_data_chunk_get_size(input);
    for (idx_t r = 0; r < rows; r++) {
        if (has(&id, r)) {
            id_words_add((id_words *)states[r], integer_at(&id, r));
        }
    }
}

static void combine(duckdb_function_info info, duckdb_aggregate_state *source, duckdb_aggregate_state *target,
                    idx_t count) {
    (void)info;
    for (idx_t i = 0; i < count; i++) {
        const id_words *from = (const id_words *)source[i];
        id_words *to = (id_words *)target[i];
        to->failed |= from->failed;
        if (from->n && room_for(to, from->n)) {
            memcpy(to->words + to->n, from->words, (size_t)from->n * sizeof *from->words);
            to->n += from->n;
        }
    }
}

static void finalize(duckdb_function_info info, duckdb_aggregate_state *source, duckdb_vector result,
                     idx_t count, idx_t offset) {
    bw_error error = {0};
    for (idx_t i = 0; i < count; i++) {
        if (!id_words_write((const id_words *)source[i], result, offset + i, &error)) {
            char message[MESSAGE_BYTES];
            duckdb_aggregate_function_set_error(info, error_text("boxwood_ids", &error, message));
            return;
        }
    }
}

bool register_id_set(duckdb_connection connection) {
    duckdb_aggregate_function function = duckdb_create_aggregate_function();
    duckdb_logical_type id = duckdb_create_logical_type(DUCKDB_TYPE_BIGINT),
                        set = duckdb_create_logical_type(DUCKDB_TYPE_BLOB);
    duckdb_aggregate_function_set_name(function, "boxwood_ids");
    duckdb_aggregate_function_add_parameter(function, id);
    duckdb_aggregate_function_set_return_type(function, set);
    duckdb_aggregate_function_set_functions(function, state_size, state_init, update, combine, finalize);
    duckdb_aggregate_function_set_destructor(function, state_destroy);
    duckdb_state state = duckdb_register_aggregate_function(connection, function);
    duckdb_destroy_logical_type(&id);
    duckdb_destroy_logical_type(&set);
    duckdb_destroy_aggregate_function(&function);
    return state == DuckDBSuccess;
}
