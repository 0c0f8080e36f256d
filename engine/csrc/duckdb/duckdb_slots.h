/* duckdb_slots.h - the part of DuckDB's C extension API (stable, v1.2.0) that this extension uses.
 *
 * DuckDB hands an extension a table of functions. Its first 357 slots are fixed by version v1.2.0; each
 * function here is named with the number of its slot. check_slots.py compares numbers, signatures and
 * constants with DuckDB's own headers. Before anything is called, duckdb_slots must have been filled from the
 * table. */
#ifndef BOXWOOD_DUCKDB_SLOTS_H
#define BOXWOOD_DUCKDB_SLOTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DUCKDB_API_VERSION "v1.2.0"
#define DUCKDB_SLOTS 357

typedef uint64_t idx_t;
typedef enum { DuckDBSuccess = 0, DuckDBError = 1 } duckdb_state;
typedef enum {
    DUCKDB_TYPE_BOOLEAN = 1,
    DUCKDB_TYPE_INTEGER = 4,
    DUCKDB_TYPE_BIGINT = 5,
    DUCKDB_TYPE_UTINYINT = 6,
    DUCKDB_TYPE_UBIGINT = 9,
    DUCKDB_TYPE_DOUBLE = 11,
    DUCKDB_TYPE_VARCHAR = 17,
    DUCKDB_TYPE_BLOB = 18
} duckdb_type;

/* Handles: pointers that only DuckDB looks behind. */
typedef struct duckdb_database_handle *duckdb_database;
typedef struct duckdb_connection_handle *duckdb_connection;
typedef struct duckdb_value_handle *duckdb_value;
typedef struct duckdb_logical_type_handle *duckdb_logical_type;
typedef struct duckdb_data_chunk_handle *duckdb_data_chunk;
typedef struct duckdb_vector_handle *duckdb_vector;
typedef struct duckdb_table_function_handle *duckdb_table_function;
typedef struct duckdb_scalar_function_handle *duckdb_scalar_function;
typedef struct duckdb_scalar_function_set_handle *duckdb_scalar_function_set;
typedef struct duckdb_aggregate_function_handle *duckdb_aggregate_function;
typedef struct duckdb_aggregate_state_handle *duckdb_aggregate_state;
typedef struct duckdb_bind_info_handle *duckdb_bind_info;
typedef struct duckdb_init_info_handle *duckdb_init_info;
typedef struct duckdb_function_info_handle *duckdb_function_info;
typedef struct duckdb_extension_info_handle *duckdb_extension_info;

/* A VARCHAR: at most 12 bytes inlined, longer ones behind the pointer. */
typedef struct {
    union {
        struct {
            uint32_t length;
            char prefix[4];
            char *ptr;
        } pointer;
        struct {
            uint32_t length;
            char inlined[12];
        } inlined;
    } value;
} duckdb_string_t;

/* Where a list's elements lie in the child vector. */
typedef struct duckdb_list_entry {
    uint64_t offset;
    uint64_t length;
} duckdb_list_entry;

typedef void (*duckdb_delete_callback_t)(void *data);
typedef void (*duckdb_table_function_bind_t)(duckdb_bind_info info);
typedef void (*duckdb_table_function_init_t)(duckdb_init_info info);
typedef void (*duckdb_table_function_t)(duckdb_function_info info, duckdb_data_chunk output);
typedef void (*duckdb_scalar_function_t)(duckdb_function_info info, duckdb_data_chunk input,
                                         duckdb_vector output);
typedef idx_t (*duckdb_aggregate_state_size)(duckdb_function_info info);
typedef void (*duckdb_aggregate_init_t)(duckdb_function_info info, duckdb_aggregate_state state);
typedef void (*duckdb_aggregate_destroy_t)(duckdb_aggregate_state *states, idx_t count);
typedef void (*duckdb_aggregate_update_t)(duckdb_function_info info, duckdb_data_chunk input,
                                          duckdb_aggregate_state *states);
typedef void (*duckdb_aggregate_combine_t)(duckdb_function_info info, duckdb_aggregate_state *source,
                                           duckdb_aggregate_state *target, idx_t count);
typedef void (*duckdb_aggregate_finalize_t)(duckdb_function_info info, duckdb_aggregate_state *source,
                                            duckdb_vector result, idx_t count, idx_t offset);

struct duckdb_extension_access {
    void (*set_error)(duckdb_extension_info info, const char *error);
    duckdb_database *(*get_database)(duckdb_extension_info info);
    const void *(*get_api)(duckdb_extension_info info, const char *version);
};

typedef void (*duckdb_slot)(void);
extern duckdb_slot duckdb_slots[DUCKDB_SLOTS];

#define SLOT(number, result, arguments) ((result(*) arguments)duckdb_slots[number])

/* One function a line. */
/* clang-format off */
#define duckdb_connect SLOT(3, duckdb_state, (duckdb_database, duckdb_connection *))
#define duckdb_disconnect SLOT(6, void, (duckdb_connection *))
#define duckdb_free SLOT(25, void, (void *))
#define duckdb_vector_size SLOT(26, idx_t, (void))
#define duckdb_destroy_value SLOT(92, void, (duckdb_value *))
#define duckdb_get_bool SLOT(118, bool, (duckdb_value))
#define duckdb_get_uint8 SLOT(120, uint8_t, (duckdb_value))
#define duckdb_get_int64 SLOT(125, int64_t, (duckdb_value))
#define duckdb_get_uint64 SLOT(126, uint64_t, (duckdb_value))
#define duckdb_get_double SLOT(130, double, (duckdb_value))
#define duckdb_get_varchar SLOT(142, char *, (duckdb_value))
#define duckdb_is_null_value SLOT(149, bool, (duckdb_value))
#define duckdb_get_list_size SLOT(151, idx_t, (duckdb_value))
#define duckdb_get_list_child SLOT(152, duckdb_value, (duckdb_value, idx_t))
#define duckdb_create_logical_type SLOT(156, duckdb_logical_type, (duckdb_type))
#define duckdb_create_list_type SLOT(159, duckdb_logical_type, (duckdb_logical_type))
#define duckdb_create_struct_type SLOT(163, duckdb_logical_type, (duckdb_logical_type *, const char **, idx_t))
#define duckdb_destroy_logical_type SLOT(184, void, (duckdb_logical_type *))
#define duckdb_data_chunk_get_column_count SLOT(189, idx_t, (duckdb_data_chunk))
#define duckdb_data_chunk_get_vector SLOT(190, duckdb_vector, (duckdb_data_chunk, idx_t))
#define duckdb_data_chunk_get_size SLOT(191, idx_t, (duckdb_data_chunk))
#define duckdb_data_chunk_set_size SLOT(192, void, (duckdb_data_chunk, idx_t))
#define duckdb_vector_get_data SLOT(194, void *, (duckdb_vector))
#define duckdb_vector_get_validity SLOT(195, uint64_t *, (duckdb_vector))
#define duckdb_vector_ensure_validity_writable SLOT(196, void, (duckdb_vector))
#define duckdb_vector_assign_string_element SLOT(197, void, (duckdb_vector, idx_t, const char *))
#define duckdb_vector_assign_string_element_len SLOT(198, void, (duckdb_vector, idx_t, const char *, idx_t))
#define duckdb_list_vector_get_child SLOT(199, duckdb_vector, (duckdb_vector))
#define duckdb_list_vector_set_size SLOT(201, duckdb_state, (duckdb_vector, idx_t))
#define duckdb_list_vector_reserve SLOT(202, duckdb_state, (duckdb_vector, idx_t))
#define duckdb_struct_vector_get_child SLOT(203, duckdb_vector, (duckdb_vector, idx_t))
#define duckdb_validity_set_row_invalid SLOT(207, void, (uint64_t *, idx_t))
#define duckdb_create_scalar_function SLOT(209, duckdb_scalar_function, (void))
#define duckdb_destroy_scalar_function SLOT(210, void, (duckdb_scalar_function *))
#define duckdb_scalar_function_set_name SLOT(211, void, (duckdb_scalar_function, const char *))
#define duckdb_scalar_function_set_special_handling SLOT(213, void, (duckdb_scalar_function))
#define duckdb_scalar_function_set_volatile SLOT(214, void, (duckdb_scalar_function))
#define duckdb_scalar_function_add_parameter SLOT(215, void, (duckdb_scalar_function, duckdb_logical_type))
#define duckdb_scalar_function_set_return_type SLOT(216, void, (duckdb_scalar_function, duckdb_logical_type))
#define duckdb_scalar_function_set_function SLOT(218, void, (duckdb_scalar_function, duckdb_scalar_function_t))
#define duckdb_register_scalar_function SLOT(219, duckdb_state, (duckdb_connection, duckdb_scalar_function))
#define duckdb_scalar_function_set_error SLOT(221, void, (duckdb_function_info, const char *))
#define duckdb_create_scalar_function_set SLOT(222, duckdb_scalar_function_set, (const char *))
#define duckdb_destroy_scalar_function_set SLOT(223, void, (duckdb_scalar_function_set *))
#define duckdb_add_scalar_function_to_set SLOT(224, duckdb_state, (duckdb_scalar_function_set, duckdb_scalar_function))
#define duckdb_register_scalar_function_set SLOT(225, duckdb_state, (duckdb_connection, duckdb_scalar_function_set))
#define duckdb_create_aggregate_function SLOT(226, duckdb_aggregate_function, (void))
#define duckdb_destroy_aggregate_function SLOT(227, void, (duckdb_aggregate_function *))
#define duckdb_aggregate_function_set_name SLOT(228, void, (duckdb_aggregate_function, const char *))
#define duckdb_aggregate_function_add_parameter SLOT(229, void, (duckdb_aggregate_function, duckdb_logical_type))
#define duckdb_aggregate_function_set_return_type SLOT(230, void, (duckdb_aggregate_function, duckdb_logical_type))
#define duckdb_aggregate_function_set_functions SLOT(231, void, (duckdb_aggregate_function, duckdb_aggregate_state_size, duckdb_aggregate_init_t, duckdb_aggregate_update_t, duckdb_aggregate_combine_t, duckdb_aggregate_finalize_t))
#define duckdb_aggregate_function_set_destructor SLOT(232, void, (duckdb_aggregate_function, duckdb_aggregate_destroy_t))
#define duckdb_register_aggregate_function SLOT(233, duckdb_state, (duckdb_connection, duckdb_aggregate_function))
#define duckdb_aggregate_function_set_error SLOT(237, void, (duckdb_function_info, const char *))
#define duckdb_create_table_function SLOT(242, duckdb_table_function, (void))
#define duckdb_destroy_table_function SLOT(243, void, (duckdb_table_function *))
#define duckdb_table_function_set_name SLOT(244, void, (duckdb_table_function, const char *))
#define duckdb_table_function_add_parameter SLOT(245, void, (duckdb_table_function, duckdb_logical_type))
#define duckdb_table_function_add_named_parameter SLOT(246, void, (duckdb_table_function, const char *, duckdb_logical_type))
#define duckdb_table_function_set_extra_info SLOT(247, void, (duckdb_table_function, void *, duckdb_delete_callback_t))
#define duckdb_table_function_set_bind SLOT(248, void, (duckdb_table_function, duckdb_table_function_bind_t))
#define duckdb_table_function_set_init SLOT(249, void, (duckdb_table_function, duckdb_table_function_init_t))
#define duckdb_table_function_set_local_init SLOT(250, void, (duckdb_table_function, duckdb_table_function_init_t))
#define duckdb_table_function_set_function SLOT(251, void, (duckdb_table_function, duckdb_table_function_t))
#define duckdb_table_function_supports_projection_pushdown SLOT(252, void, (duckdb_table_function, bool))
#define duckdb_register_table_function SLOT(253, duckdb_state, (duckdb_connection, duckdb_table_function))
#define duckdb_bind_get_extra_info SLOT(254, void *, (duckdb_bind_info))
#define duckdb_bind_add_result_column SLOT(255, void, (duckdb_bind_info, const char *, duckdb_logical_type))
#define duckdb_bind_get_parameter SLOT(257, duckdb_value, (duckdb_bind_info, idx_t))
#define duckdb_bind_get_named_parameter SLOT(258, duckdb_value, (duckdb_bind_info, const char *))
#define duckdb_bind_set_bind_data SLOT(259, void, (duckdb_bind_info, void *, duckdb_delete_callback_t))
#define duckdb_bind_set_cardinality SLOT(260, void, (duckdb_bind_info, idx_t, bool))
#define duckdb_bind_set_error SLOT(261, void, (duckdb_bind_info, const char *))
#define duckdb_init_get_bind_data SLOT(263, void *, (duckdb_init_info))
#define duckdb_init_set_init_data SLOT(264, void, (duckdb_init_info, void *, duckdb_delete_callback_t))
#define duckdb_init_get_column_count SLOT(265, idx_t, (duckdb_init_info))
#define duckdb_init_get_column_index SLOT(266, idx_t, (duckdb_init_info, idx_t))
#define duckdb_init_set_max_threads SLOT(267, void, (duckdb_init_info, idx_t))
#define duckdb_init_set_error SLOT(268, void, (duckdb_init_info, const char *))
#define duckdb_function_get_bind_data SLOT(270, void *, (duckdb_function_info))
#define duckdb_function_get_init_data SLOT(271, void *, (duckdb_function_info))
#define duckdb_function_get_local_init_data SLOT(272, void *, (duckdb_function_info))
#define duckdb_function_set_error SLOT(273, void, (duckdb_function_info, const char *))
/* clang-format on */

#endif
