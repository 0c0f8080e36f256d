/* json.h - a small strict JSON reader for untrusted documents (RFC 8259), with limits. */
#ifndef BW_JSON_H
#define BW_JSON_H

#include "base.h"

typedef enum bw_json_kind {
    BW_JSON_NULL,
    BW_JSON_FALSE,
    BW_JSON_TRUE,
    BW_JSON_INTEGER,
    BW_JSON_NUMBER,
    BW_JSON_STRING,
    BW_JSON_ARRAY,
    BW_JSON_OBJECT
} bw_json_kind;

/* Values lie in one array in document order; a container's children follow it, and `next` skips a value with
 * all its children. A number that has a fraction or an exponent, or that no int64 holds, is a NUMBER and
 * stays text. */
typedef struct bw_json_value {
    bw_json_kind kind;
    uint32_t next;  /* number of the value after this one and its children */
    uint32_t count; /* array: elements; object: members (each a STRING value, then its value) */
    uint32_t start,
        end; /* where the value stands in the document, for messages and for keeping it verbatim */
    union {
        int64_t integer;    /* INTEGER */
        const char *string; /* STRING: decoded, NUL-terminated, without NULs inside */
    };
} bw_json_value;

typedef struct bw_json {
    bw_json_value *values; /* values[0] is the document */
    uint32_t count;
    char *strings;
} bw_json;

#define BW_JSON_MAX_DEPTH 16
#define BW_JSON_MAX_VALUES 16000000

/* BW_INVALID with line and column for malformed text, text that is not UTF-8, a NUL inside a string,
 * containers nested deeper or values more than the limits, or a key that an object has twice. *json is owned:
 * bw_json_free. */
int32_t bw_json_parse(const char *text, size_t bytes, bw_json *json, bw_error *error);
void bw_json_free(bw_json *json);
/* The value of a member of object `object`, or NULL. */
const bw_json_value *bw_json_member(const bw_json *json, const bw_json_value *object, const char *key);
/* Bytes of a string to show in a message ("%.*s"): at most 40, and no character cut in two. */
int bw_json_fit(const char *string);

#endif
