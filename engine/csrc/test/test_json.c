/* test_json.c - the JSON reader against RFC 8259 and its own limits. */
#include "json.h"
#include "test.h"

static bw_error error;

static int32_t parse(const char *text, bw_json *json) {
    return bw_json_parse(text, strlen(text), json, &error);
}

static void test_values(void) {
    bw_json json;
    CHECK_STATUS(parse(" {\"a\" : [1, -2.5, 1e3, null,true ,false], \"b\":{}, \"c\":\"x\"}\n", &json), BW_OK);
    const bw_json_value *v = json.values;
    CHECK_EQUAL(json.count, 13);
    CHECK(v[0].kind == BW_JSON_OBJECT && v[0].count == 3 && v[0].next == 13);
    CHECK(v[1].kind == BW_JSON_STRING && strcmp(v[1].string, "a") == 0);
    CHECK(v[2].kind == BW_JSON_ARRAY && v[2].count == 6 && v[2].next == 9);
    CHECK(v[3].kind == BW_JSON_INTEGER && v[3].integer == 1);
    CHECK(v[4].kind == BW_JSON_NUMBER && v[5].kind == BW_JSON_NUMBER);
    CHECK(v[4].end - v[4].start == 4);
    CHECK(v[6].kind == BW_JSON_NULL && v[7].kind == BW_JSON_TRUE && v[8].kind == BW_JSON_FALSE);
    CHECK(bw_json_member(&json, v, "b") == &v[10]);
    CHECK(bw_json_member(&json, v, "c") == &v[12]);
    CHECK(bw_json_member(&json, v, "d") == NULL);
    CHECK(bw_json_member(&json, &v[2], "a") == NULL);
    CHECK(v[0].start == 1);
    bw_json_free(&json);
}

static void test_integers(void) {
    static const struct {
        const char *text;
        bool integer;
        int64_t value;
    } cases[] = {{"0", true, 0},
                 {"-0", true, 0},
                 {"9223372036854775807", true, INT64_MAX},
                 {"-9223372036854775808", true, INT64_MIN},
                 {"9223372036854775808", false, 0},
                 {"-9223372036854775809", false, 0},
                 {"99999999999999999999999999", false, 0},
                 {"1.0", false, 0},
                 {"1E+2", false, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bw_json json;
        CHECK_STATUS(parse(cases[i].text, &json), BW_OK);
        CHECK(json.values[0].kind == (cases[i].integer ? BW_JSON_INTEGER : BW_JSON_NUMBER));
        if (cases[i].integer) {
            CHECK_EQUAL(json.values[0].integer, cases[i].value);
        }
        bw_json_free(&json);
    }
}

static void test_strings(void) {
    bw_json json;
    CHECK_STATUS(parse("\"\\\"\\\\\\/\\b\\f\\n\\r\\t \\u0041\\u00e9\\u20AC\\ud83d\\ude00 \xC3\xA9\"", &json),
                 BW_OK);
    CHECK(strcmp(json.values[0].string, "\"\\/\b\f\n\r\t A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80 \xC3\xA9") ==
          0);
    bw_json_free(&json);
    CHECK_EQUAL(bw_json_fit("short"), 5);
    CHECK_EQUAL(bw_json_fit("0123456789012345678901234567890123456789x"), 40);
    CHECK_EQUAL(bw_json_fit("012345678901234567890123456789012345678\xC3\xA9"), 39);
}

static void test_refusals(void) {
    static const struct {
        const char *text, *message;
    } cases[] = {{"", "expected a value"},
                 {"  ", "line 1, column 3: expected a value"},
                 {"nul", "expected a value"},
                 {"{\"a\":1,}", "expected a key"},
                 {"{\"a\" 1}", "line 1, column 6: expected ':'"},
                 {"{\"a\":1 \"b\":2}", "expected ',' or '}'"},
                 {"{\n \"\xC3\xA9\": +1}", "line 2, column 7: expected a value"},
                 {"[1,]", "expected a value"},
                 {"[1 2]", "expected ',' or ']'"},
                 {"[1", "no closing ']'"},
                 {"{\"a\":1", "no closing '}'"},
                 {"[1]]", "follows the end"},
                 {"01", "must not begin with a zero"},
                 {"-", "digit must follow the minus"},
                 {"-x", "digit must follow the minus"},
                 {"1.", "decimal point"},
                 {"1e", "exponent"},
                 {"1e+", "exponent"},
                 {".5", "expected a value"},
                 {"NaN", "expected a value"},
                 {"\"abc", "no closing quote"},
                 {"\"a\nb\"", "control character"},
                 {"\"\\x\"", "unknown escape"},
                 {"\"\\", "unknown escape"},
                 {"\"\\u12g4\"", "four hexadecimal digits"},
                 {"\"\\u12", "four hexadecimal digits"},
                 {"\"\\u0000\"", "NUL"},
                 {"\"\\ud800\"", "surrogate"},
                 {"\"\\ud800\\u0041\"", "surrogate"},
                 {"\"\\udc00\"", "surrogate"},
                 {"\"\x80\"", "not UTF-8"},
                 {"\"\xC0\x80\"", "not UTF-8"},
                 {"\"\xE0\x80\x80\"", "not UTF-8"},
                 {"\"\xED\xA0\x80\"", "not UTF-8"},
                 {"\"\xF4\x90\x80\x80\"", "not UTF-8"},
                 {"\"\xE2\x82\"", "not UTF-8"},
                 {"{\"a\":1,\"b\":2,\"a\":3}", "key \"a\" twice"},
                 {"{\"a\":1,\"\\u0061\":3}", "key \"a\" twice"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bw_json json;
        CHECK_STATUS(parse(cases[i].text, &json), BW_INVALID);
        CHECK_MESSAGE(cases[i].message);
        CHECK(json.values == NULL && json.count == 0);
    }
    bw_json json;
    CHECK_STATUS(bw_json_parse("[1]\0", 4, &json, &error), BW_INVALID);
    CHECK_STATUS(bw_json_parse("12345", 2, &json, &error), BW_OK);
    CHECK_EQUAL(json.values[0].integer, 12);
    bw_json_free(&json);
}

static void test_limits(void) {
    bw_json json;
    CHECK_STATUS(parse("[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]", &json), BW_OK);
    bw_json_free(&json);
    CHECK_STATUS(parse("[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]", &json), BW_INVALID);
    CHECK_MESSAGE("deeper than 16");
    /* an object of many keys is checked in reasonable time */
    bw_text text = {0};
    bw_text_append(&text, "{");
    for (int i = 0; i < 200000; i++) {
        bw_text_append(&text, "%s\"%x\":0", i > 0 ? "," : "", i * 7919);
    }
    bw_text_append(&text, "}");
    CHECK_STATUS(parse(text.data, &json), BW_OK);
    CHECK_EQUAL(json.values[0].count, 200000);
    bw_json_free(&json);
    bw_free(text.data);
    size_t values = BW_JSON_MAX_VALUES, bytes = 2 * values + 1;
    char *many = test_alloc(bytes);
    for (size_t i = 0; i < values; i++) {
        memcpy(many + 2 * i, ",0", 2);
    }
    many[0] = '[';
    many[bytes - 1] = ']';
    CHECK_STATUS(bw_json_parse(many, bytes, &json, &error), BW_INVALID);
    CHECK_MESSAGE("16 million");
    free(many);
}

#ifdef BW_FAULTS
static void test_faults(void) {
    const char *text =
        "{\"a\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,"
        "31,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,56,57,58,59,60,61,"
        "62,63,64],\"b\":2}";
    int32_t status = BW_NOMEM;
    for (long n = 0; status == BW_NOMEM && n < 100; n++) {
        bw_json json;
        bw_fault_set(BW_FAULT_ALLOC, n);
        status = parse(text, &json);
        bw_fault_set(BW_FAULT_ALLOC, -1);
        CHECK(status == BW_OK || (status == BW_NOMEM && n < 99));
        if (status == BW_OK) {
            CHECK(n == 4);
            bw_json_free(&json);
        }
    }
}
#endif

int main(void) {
    test_values();
    test_integers();
    test_strings();
    test_refusals();
    test_limits();
#ifdef BW_FAULTS
    test_faults();
#endif
    return test_finish();
}
