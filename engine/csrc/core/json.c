/* json.c - the JSON reader. Recursive descent; the depth limit bounds the recursion. */
#include "json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct reader {
    const char *text;
    size_t bytes;
    size_t at;
    uint32_t depth;
    bw_json *json;
    size_t capacity;   /* of json->values */
    char *next_string; /* free space in json->strings, which is as large as the text: decoding never lengthens
                        */
    bw_error *error;
} reader;

/* Fails at place `at` of the document; people count lines and columns from 1, columns in characters. */
static int32_t fail_at(const reader *r, size_t at, const char *what) {
    uint32_t line = 1, column = 1;
    for (size_t i = 0; i < at && i < r->bytes; i++) {
        if (r->text[i] == '\n') {
            line++;
            column = 1;
        } else if (((unsigned char)r->text[i] & 0xC0) != 0x80) {
            column++;
        }
    }
    return bw_fail(r->error, BW_INVALID, "JSON, line %u, column %u: %s", line, column, what);
}

static void skip_space(reader *r) {
    while (r->at < r->bytes) {
        char c = r->text[r->at];
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r') {
            return;
        }
        r->at++;
    }
}

static int peek(const reader *r) {
    return r->at < r->bytes ? (unsigned char)r->text[r->at] : -1;
}

static int32_t new_value(reader *r, bw_json_kind kind, uint32_t *number) {
    bw_json *json = r->json;
    if (json->count >= BW_JSON_MAX_VALUES) {
        return fail_at(r, r->at, "the document has more than 16 million values");
    }
    if (json->count == r->capacity) {
        size_t capacity = r->capacity ? r->capacity * 2 : 64;
        bw_json_value *values = bw_realloc_array(json->values, capacity, sizeof *values);
        if (!values) {
            return bw_fail_nomem(r->error, capacity * sizeof *values);
        }
        json->values = values;
        r->capacity = capacity;
    }
    *number = json->count++;
    json->values[*number] = (bw_json_value){.kind = kind, .start = (uint32_t)r->at};
    return BW_OK;
}

static void end_value(reader *r, uint32_t number) {
    r->json->values[number].end = (uint32_t)r->at;
    r->json->values[number].next = r->json->count;
}

/* Four hexadecimal digits at r->at, or -1. */
static int32_t read_hex(reader *r) {
    int32_t code = 0;
    if (r->bytes - r->at < 4) {
        return -1;
    }
    for (int i = 0; i < 4; i++) {
        char c = r->text[r->at + (size_t)i];
        int32_t digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
        if (digit < 0) {
            return -1;
        }
        code = code * 16 + digit;
    }
    r->at += 4;
    return code;
}

static char *write_utf8(char *out, uint32_t code) {
    if (code < 0x80) {
        *out++ = (char)code;
    } else if (code < 0x800) {
        *out++ = (char)(0xC0 | (code >> 6));
        *out++ = (char)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        *out++ = (char)(0xE0 | (code >> 12));
        *out++ = (char)(0x80 | ((code >> 6) & 0x3F));
        *out++ = (char)(0x80 | (code & 0x3F));
    } else {
        *out++ = (char)(0xF0 | (code >> 18));
        *out++ = (char)(0x80 | ((code >> 12) & 0x3F));
        *out++ = (char)(0x80 | ((code >> 6) & 0x3F));
        *out++ = (char)(0x80 | (code & 0x3F));
    }
    return out;
}

/* Bytes of the UTF-8 character at r->at (RFC 3629: shortest form, no surrogates, at most U+10FFFF), or 0. */
static size_t utf8_length(const reader *r) {
    const unsigned char *s = (const unsigned char *)r->text + r->at;
    size_t left = r->bytes - r->at;
    if (s[0] < 0x80) {
        return 1;
    }
    if (s[0] >= 0xC2 && s[0] <= 0xDF) {
        return left >= 2 && (s[1] & 0xC0) == 0x80 ? 2 : 0;
    }
    if (s[0] >= 0xE0 && s[0] <= 0xEF) {
        if (left < 3 || (s[1] & 0xC0) != 0x80 || (s[2] & 0xC0) != 0x80) {
            return 0;
        }
        return (s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) ? 0 : 3;
    }
    if (s[0] >= 0xF0 && s[0] <= 0xF4) {
        if (left < 4 || (s[1] & 0xC0) != 0x80 || (s[2] & 0xC0) != 0x80 || (s[3] & 0xC0) != 0x80) {
            return 0;
        }
        return (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F) ? 0 : 4;
    }
    return 0;
}

/* The escape after a backslash; r->at is just past the backslash. */
static int32_t read_escape(reader *r, char **out) {
    static const char names[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    size_t start = r->at - 1;
    int c = peek(r);
    const char *name = c > 0 ? strchr(names, c) : NULL;
    if (name) {
        r->at++;
        *(*out)++ = meanings[name - names];
        return BW_OK;
    }
    if (c != 'u') {
        return fail_at(r, start, "unknown escape in a string");
    }
    r->at++;
    int32_t code = read_hex(r);
    if (code < 0) {
        return fail_at(r, start, "\\u needs four hexadecimal digits");
    }
    if (code == 0) {
        return fail_at(r, start, "a string must not contain NUL");
    }
    if (code >= 0xDC00 && code <= 0xDFFF) {
        return fail_at(r, start, "half of a surrogate pair");
    }
    if (code >= 0xD800 && code <= 0xDBFF) {
        int32_t low = -1;
        if (r->bytes - r->at >= 2 && r->text[r->at] == '\\' && r->text[r->at + 1] == 'u') {
            r->at += 2;
            low = read_hex(r);
        }
        if (low < 0xDC00 || low > 0xDFFF) {
            return fail_at(r, start, "half of a surrogate pair");
        }
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    *out = write_utf8(*out, (uint32_t)code);
    return BW_OK;
}

static int32_t read_string(reader *r) {
    uint32_t number;
    size_t start = r->at;
    int32_t status = new_value(r, BW_JSON_STRING, &number);
    if (status) {
        return status;
    }
    char *out = r->next_string;
    r->json->values[number].string = out;
    r->at++;
    for (;;) {
        int c = peek(r);
        if (c < 0) {
            return fail_at(r, start, "the string has no closing quote");
        }
        if (c == '"') {
            break;
        }
        if (c < 0x20) {
            return fail_at(r, r->at, "control character in a string: write it as an escape");
        }
        if (c == '\\') {
            r->at++;
            status = read_escape(r, &out);
            if (status) {
                return status;
            }
            continue;
        }
        size_t length = utf8_length(r);
        if (length == 0) {
            return fail_at(r, r->at, "the text is not UTF-8");
        }
        memcpy(out, r->text + r->at, length);
        out += length;
        r->at += length;
    }
    r->at++;
    *out++ = 0;
    r->next_string = out;
    end_value(r, number);
    return BW_OK;
}

static bool is_digit(int c) {
    return c >= '0' && c <= '9';
}

static int32_t read_number(reader *r) {
    uint32_t number;
    size_t start = r->at;
    bool negative = peek(r) == '-', whole = true;
    int64_t value = 0;
    int32_t status = new_value(r, BW_JSON_INTEGER, &number);
    if (status) {
        return status;
    }
    r->at += negative;
    if (!is_digit(peek(r))) {
        return fail_at(r, start, "a digit must follow the minus sign");
    }
    if (peek(r) == '0' && r->at + 1 < r->bytes && is_digit((unsigned char)r->text[r->at + 1])) {
        return fail_at(r, start, "a number must not begin with a zero");
    }
    for (; is_digit(peek(r)); r->at++) {
        int64_t digit = r->text[r->at] - '0';
        whole = whole && !__builtin_mul_overflow(value, 10, &value) &&
                !__builtin_add_overflow(value, negative ? -digit : digit, &value);
    }
    if (peek(r) == '.') {
        whole = false;
        r->at++;
        if (!is_digit(peek(r))) {
            return fail_at(r, start, "a digit must follow the decimal point");
        }
        while (is_digit(peek(r))) {
            r->at++;
        }
    }
    if (peek(r) == 'e' || peek(r) == 'E') {
        whole = false;
        r->at++;
        if (peek(r) == '+' || peek(r) == '-') {
            r->at++;
        }
        if (!is_digit(peek(r))) {
            return fail_at(r, start, "a digit must follow the exponent sign");
        }
        while (is_digit(peek(r))) {
            r->at++;
        }
    }
    bw_json_value *v = &r->json->values[number];
    if (whole) {
        v->integer = value;
    } else {
        v->kind = BW_JSON_NUMBER;
    }
    end_value(r, number);
    return BW_OK;
}

static int32_t read_word(reader *r) {
    static const struct {
        const char *word;
        bw_json_kind kind;
    } words[] = {{"null", BW_JSON_NULL}, {"false", BW_JSON_FALSE}, {"true", BW_JSON_TRUE}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t length = strlen(words[i].word);
        if (r->bytes - r->at >= length && memcmp(r->text + r->at, words[i].word, length) == 0) {
            uint32_t number;
            int32_t status = new_value(r, words[i].kind, &number);
            if (status) {
                return status;
            }
            r->at += length;
            end_value(r, number);
            return BW_OK;
        }
    }
    return fail_at(r, r->at,
                   "expected a value: an object, an array, a string, a number, true, false or null");
}

int bw_json_fit(const char *string) {
    size_t length = strlen(string);
    if (length > 40) {
        length = 40;
        while (((unsigned char)string[length] & 0xC0) == 0x80) {
            length--;
        }
    }
    return (int)length;
}

static int compare_keys(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Sorting keeps the check cheap for objects with millions of keys. */
static int32_t check_keys(reader *r, uint32_t object) {
    const bw_json_value *values = r->json->values;
    uint32_t count = values[object].count, n = 0;
    if (count < 2) {
        return BW_OK;
    }
    const char **keys = bw_alloc_array(count, sizeof *keys);
    if (!keys) {
        return bw_fail_nomem(r->error, count * sizeof *keys);
    }
    for (uint32_t i = object + 1; n < count; i = values[i + 1].next) {
        keys[n++] = values[i].string;
    }
    qsort(keys, count, sizeof *keys, compare_keys);
    int32_t status = BW_OK;
    for (uint32_t i = 1; i < count && !status; i++) {
        if (strcmp(keys[i - 1], keys[i]) == 0) {
            char what[96];
            snprintf(what, sizeof what, "the object has the key \"%.*s\" twice", bw_json_fit(keys[i]),
                     keys[i]);
            status = fail_at(r, values[object].start, what);
        }
    }
    bw_free(keys);
    return status;
}

static int32_t read_value(reader *r);

/* An array, or an object when `object` is set. */
static int32_t read_container(reader *r, bool object) {
    uint32_t number;
    size_t start = r->at;
    char close = object ? '}' : ']';
    if (r->depth == BW_JSON_MAX_DEPTH) {
        return fail_at(r, r->at, "nested deeper than 16 levels");
    }
    int32_t status = new_value(r, object ? BW_JSON_OBJECT : BW_JSON_ARRAY, &number);
    if (status) {
        return status;
    }
    r->depth++;
    r->at++;
    skip_space(r);
    if (peek(r) != close) {
        for (;;) {
            if (object) {
                if (peek(r) != '"') {
                    return fail_at(r, r->at, "expected a key in double quotes");
                }
                status = read_string(r);
                if (status) {
                    return status;
                }
                skip_space(r);
                if (peek(r) != ':') {
                    return fail_at(r, r->at, "expected ':' after the key");
                }
                r->at++;
            }
            status = read_value(r);
            if (status) {
                return status;
            }
            r->json->values[number].count++;
            skip_space(r);
            if (peek(r) == close) {
                break;
            }
            if (peek(r) < 0) {
                return fail_at(r, start,
                               object ? "the object has no closing '}'" : "the array has no closing ']'");
            }
            if (peek(r) != ',') {
                return fail_at(r, r->at, object ? "expected ',' or '}'" : "expected ',' or ']'");
            }
            r->at++;
            skip_space(r);
        }
    }
    r->at++;
    r->depth--;
    end_value(r, number);
    return object ? check_keys(r, number) : BW_OK;
}

static int32_t read_value(reader *r) {
    skip_space(r);
    int c = peek(r);
    if (c == '{' || c == '[') {
        return read_container(r, c == '{');
    }
    if (c == '"') {
        return read_string(r);
    }
    if (c == '-' || is_digit(c)) {
        return read_number(r);
    }
    return read_word(r);
}

int32_t bw_json_parse(const char *text, size_t bytes, bw_json *json, bw_error *error) {
    *json = (bw_json){0};
    if (!text || bytes >= UINT32_MAX) {
        return bw_fail(error, BW_INVALID,
                       text ? "JSON: the document is 4 GiB or larger" : "JSON: no document");
    }
    reader r = {.text = text, .bytes = bytes, .json = json, .error = error};
    json->strings = bw_alloc(bytes);
    if (!json->strings) {
        return bw_fail_nomem(error, bytes);
    }
    r.next_string = json->strings;
    int32_t status = read_value(&r);
    if (!status) {
        skip_space(&r);
        if (r.at < r.bytes) {
            status = fail_at(&r, r.at, "something follows the end of the document");
        }
    }
    if (status) {
        bw_json_free(json);
    }
    return status;
}

void bw_json_free(bw_json *json) {
    bw_free(json->values);
    bw_free(json->strings);
    *json = (bw_json){0};
}

const bw_json_value *bw_json_member(const bw_json *json, const bw_json_value *object, const char *key) {
    const bw_json_value *values = json->values;
    if (object->kind != BW_JSON_OBJECT) {
        return NULL;
    }
    uint32_t i = (uint32_t)(object - values) + 1;
    for (uint32_t n = 0; n < object->count; n++) {
        if (strcmp(values[i].string, key) == 0) {
            return &values[i + 1];
        }
        i = values[i + 1].next;
    }
    return NULL;
}
