/* test_model.c - model documents: limits, malformed ones, round trips, SQL, and evaluation by hand. */
#include "model.h"
#include "test.h"

static bw_error error;

#define HEAD "{\"boxwood_model\":1,\"learner\":\"branch\",\"dims\":32,\"quantizer\":\"\",\"estimators\":"
#define ZEROS "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0"
#define TERM(linear, square, constant)                                                                       \
    "{\"linear\":[" linear "," ZEROS "],\"square\":[" square "," ZEROS "],\"constant\":" constant "}"
#define SCORES(terms, rest) HEAD "[],\"threshold\":0,\"score\":{\"terms\":[" terms "]," rest "}}"
#define SCORE(linear, square, constant, rest) SCORES(TERM(linear, square, constant), rest)
#define MORE ZEROS ",0," ZEROS ",0," ZEROS ",0"
#define FINE_TERM(linear, square, constant)                                                                  \
    "{\"linear\":[" linear "," MORE "," ZEROS "],\"square\":[" square "," MORE "," ZEROS                     \
    "],\"constant\":" constant "}"
#define FINE(terms, rest)                                                                                    \
    HEAD "[],\"threshold\":0,\"fine\":{\"quantizer\":\"f\",\"terms\":[" terms "]," rest "}}"
#define CUT(threshold) "\"votes\":0,\"shift\":0,\"threshold\":" threshold
#define FINE_CUT(threshold) "\"shift\":0,\"threshold\":" threshold

static int32_t parse(const char *json, bw_model **model) {
    return bw_model_from_json(json, strlen(json), model, &error);
}

static void check_round_trip(const char *json) {
    bw_model *model = NULL, *copy = NULL;
    char *text = NULL;
    CHECK_STATUS(parse(json, &model), BW_OK);
    CHECK_STATUS(bw_model_copy(model, &copy, &error), BW_OK);
    bw_model_free(model);
    CHECK_STATUS(bw_model_to_json(copy, &text, &error), BW_OK);
    if (!CHECK(text != NULL && strcmp(text, json) == 0)) {
        printf("    %s\n    %s\n", json, text);
    }
    bw_free(text);
    bw_model_free(copy);
}

static void test_round_trips(void) {
    check_round_trip(HEAD "[],\"threshold\":0}");
    check_round_trip(HEAD "[[]],\"threshold\":1}");
    check_round_trip(HEAD "[[[]],[[[3,0,255],[31,7,7]],[]]],\"threshold\":2}");
    check_round_trip(HEAD
                     "[[[[3,12,80],[7,0,99]],[[1,5,200]]],[[[3,20,90]]]],\"threshold\":2,\"training\":{\"a "
                     "b\":[1.50,\"\\\"x \\\\\"]}}");
    check_round_trip(
        SCORE("-274877906944", "1073741824", "-40000", "\"votes\":2097152,\"shift\":21,\"threshold\":null"));
    check_round_trip(SCORE("1", "-1", "0", "\"votes\":-5,\"shift\":0,\"threshold\":-9223372036854775808"));
    check_round_trip(SCORES(TERM("1", "-1", "0") "," TERM("1", "-1", "1") "," TERM("2", "-1", "1"),
                            "\"votes\":5,\"shift\":3,\"threshold\":7"));
    check_round_trip(FINE(FINE_TERM("68719476736", "-268435456", "-9"), FINE_CUT("null")));
    check_round_trip(FINE(FINE_TERM("1", "-1", "0") "," FINE_TERM("1", "-1", "1"), FINE_CUT("8")));
    check_round_trip(
        "{\"boxwood_model\":1,\"learner\":\"a\",\"dims\":32,\"quantizer\":\"q\\\\ \\\"~\",\"estimators\":[],"
        "\"threshold\":0}");
    /* what is not canonical becomes so */
    bw_model *model;
    char *text;
    CHECK_STATUS(
        parse(" {\"training\": { \"a\" : \"b c\" } , \"threshold\":1,\"estimators\":[[[[9,1,2],[3,4,5]]]], "
              "\"dims\":32, \"learner\":\"\\u0061\",\"boxwood_model\":1}",
              &model),
        BW_OK);
    CHECK_STATUS(bw_model_to_json(model, &text, &error), BW_OK);
    CHECK(
        strcmp(
            text,
            "{\"boxwood_model\":1,\"learner\":\"a\",\"dims\":32,\"quantizer\":\"\",\"estimators\":[[[[3,4,5],"
            "[9,1,2]]]],\"threshold\":1,\"training\":{\"a\":\"b c\"}}") == 0);
    bw_free(text);
    bw_model_free(model);
}

static void test_refusals(void) {
    static const struct {
        const char *json, *message;
    } cases[] = {
        {"[]", "expected a JSON object"},
        {"{", "JSON, line 1, column 2"},
        {"{}", "boxwood_model is missing"},
        {"{\"boxwood_model\":\"1\"}", "boxwood_model: expected an integer"},
        {"{\"boxwood_model\":0}", "boxwood_model: 0 is out of range"},
        {"{\"boxwood_model\":1}", "learner is missing"},
        {"{\"boxwood_model\":1,\"x\":1}", "unknown member \"x\""},
        {"{\"boxwood_model\":1,\"learner\":5}", "learner: expected a string"},
        {"{\"boxwood_model\":1,\"learner\":\"a\",\"dims\":31}", "dims: 31 is out of range 32..32"},
        {"{\"boxwood_model\":1,\"learner\":\"a\",\"dims\":32}", "estimators is missing"},
        {"{\"boxwood_model\":1,\"learner\":\"A\",\"dims\":32,\"estimators\":[],\"threshold\":0}",
         "learner: expected a name"},
        {"{\"boxwood_model\":1,\"learner\":\"\",\"dims\":32,\"estimators\":[],\"threshold\":0}",
         "learner: expected a name"},
        {"{\"boxwood_model\":1,\"learner\":\"abcdefghijklmnop\",\"dims\":32,\"estimators\":[],\"threshold\":"
         "0}",
         "learner: expected a name"},
        {"{\"boxwood_model\":1,\"learner\":\"a\",\"dims\":32,\"quantizer\":1,\"estimators\":[],\"threshold\":"
         "0}",
         "quantizer: expected a string"},
        {"{\"boxwood_model\":1,\"learner\":\"a\",\"dims\":32,\"quantizer\":\"\xC3\xA9\",\"estimators\":[],"
         "\"threshold\":0}",
         "quantizer: expected at most 31 bytes"},
        {"{\"boxwood_model\":1,\"learner\":\"a\",\"dims\":32,\"quantizer\":"
         "\"01234567890123456789012345678901\","
         "\"estimators\":[],\"threshold\":0}",
         "quantizer: expected at most 31 bytes"},
        {HEAD "{},\"threshold\":0}", "estimators: expected a list"},
        {HEAD "[]}", "threshold is missing"},
        {HEAD "[],\"threshold\":1}", "threshold: 1 is out of range 0..0"},
        {HEAD "[],\"threshold\":-1}", "threshold: -1 is out of range"},
        {HEAD "[],\"threshold\":0.0}", "threshold: expected an integer"},
        {HEAD "[1],\"threshold\":0}", "estimators[0]: expected a list of boxes"},
        {HEAD "[[],[1]],\"threshold\":0}", "estimators[1][0]: expected a box"},
        {HEAD "[[[1]]],\"threshold\":0}", "estimators[0][0][0]: expected a range"},
        {HEAD "[[[[1,2]]]],\"threshold\":0}", "estimators[0][0][0]: expected a range"},
        {HEAD "[[[[1,2,3,4]]]],\"threshold\":0}", "estimators[0][0][0]: expected a range"},
        {HEAD "[[[[1,[2],3]]]],\"threshold\":0}", "estimators[0][0][0]: lo must be an integer"},
        {HEAD "[[],[],[[[1,2,3],[40,2,3]]]],\"threshold\":0}",
         "estimators[2][0][1]: dim 40 is out of range 0..31"},
        {HEAD "[[[[-1,2,3]]]],\"threshold\":0}", "estimators[0][0][0]: dim -1 is out of range 0..31"},
        {HEAD "[[[[1,2,256]]]],\"threshold\":0}", "hi 256 is out of range 0..255"},
        {HEAD "[[[[1,2,99999999999]]]],\"threshold\":0}", "hi 99999999999 is out of range 0..255"},
        {HEAD "[[[[1,3,2]]]],\"threshold\":0}", "lo 3 is above hi 2"},
        {HEAD "[[[[1,2,3]],[[5,1,1],[1,2,3],[5,1,2]]]],\"threshold\":0}",
         "estimators[0][1][2]: dim 5 has a range in this box"},
        {HEAD "[],\"threshold\":0,\"score\":null}", "score: expected an object"},
        {HEAD "[],\"threshold\":0,\"score\":{}}", "score.votes is missing"},
        {HEAD "[],\"threshold\":0,\"score\":{\"votes\":0}}", "score.terms is missing"},
        {HEAD "[],\"threshold\":0,\"score\":{\"x\":1}}", "score: unknown member \"x\""},
        {HEAD "[],\"threshold\":0,\"score\":{\"linear\":[1]}}", "score: unknown member \"linear\""},
        {SCORES("", CUT("1")), "score.terms: there are 0 of them; 1 to 8 are allowed"},
        {SCORES("1,2,3,4,5,6,7,8,9", CUT("1")), "score.terms: there are 9 of them; 1 to 8 are allowed"},
        {SCORES("1", CUT("1")), "score.terms[0]: expected an object"},
        {SCORES(TERM("0", "0", "0") ",{\"x\":1}", CUT("1")), "score.terms[1]: unknown member \"x\""},
        {SCORES(TERM("0", "0", "0") ",{}", CUT("1")), "score.terms[1].linear is missing"},
        {SCORES("{\"linear\":[1]}", CUT("1")), "score.terms[0].linear: expected 32 integers, got 1"},
        {HEAD "[],\"threshold\":0,\"fine\":[]}", "fine: expected an object"},
        {HEAD "[],\"threshold\":0,\"fine\":{\"votes\":1}}", "fine: unknown member \"votes\""},
        {HEAD "[],\"threshold\":0,\"fine\":{\"quantizer\":1}}", "fine.quantizer: expected a string"},
        {HEAD "[],\"threshold\":0,\"fine\":{\"quantizer\":\"\xC3\xA9\",\"terms\":[" FINE_TERM(
             "0", "0", "0") "]," FINE_CUT("1") "}}",
         "fine.quantizer: expected at most 31 bytes"},
        {FINE("", FINE_CUT("1")), "fine.terms: there are 0 of them"},
        {FINE(TERM("0", "0", "0"), FINE_CUT("1")), "fine.terms[0].linear: expected 128 integers, got 32"},
        {FINE(FINE_TERM("68719476737", "0", "0"), FINE_CUT("1")),
         "fine.terms[0].linear[0]: 68719476737 is out of range"},
        {FINE(FINE_TERM("0", "268435457", "0"), FINE_CUT("1")),
         "fine.terms[0].square[0]: 268435457 is out of range"},
        {FINE(FINE_TERM("0", "0", "2251799813685249"), FINE_CUT("1")),
         "fine.terms[0].constant: 2251799813685249 is out of range"},
        {FINE(FINE_TERM("0", "0", "0"), "\"shift\":1"), "fine.threshold is missing"},
        {SCORE("1.5", "0", "0", CUT("1")), "score.terms[0].linear[0]: expected an integer"},
        {SCORE("274877906945", "0", "0", CUT("1")), "score.terms[0].linear[0]: 274877906945 is out of range"},
        {SCORE("0", "-1073741825", "0", CUT("1")), "score.terms[0].square[0]: -1073741825 is out of range"},
        {SCORES("{\"linear\":[0," ZEROS "],\"square\":[0," ZEROS "]}", CUT("1")),
         "score.terms[0].constant is missing"},
        {SCORE("0", "0", "2251799813685249", CUT("1")),
         "score.terms[0].constant: 2251799813685249 is out of range"},
        {SCORE("0", "0", "0", "\"votes\":1099511627777"), "score.votes: 1099511627777 is out of range"},
        {SCORE("0", "0", "0", "\"votes\":0,\"shift\":41"), "score.shift: 41 is out of range 0..40"},
        {SCORE("0", "0", "0", "\"votes\":0,\"shift\":0"), "score.threshold is missing"},
        {SCORE("0", "0", "0", CUT("\"1\"")), "score.threshold: expected"},
        {HEAD "[],\"threshold\":0,\"training\":[]}", "training: expected an object"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bw_model *model = NULL;
        CHECK_STATUS(parse(cases[i].json, &model), BW_INVALID);
        CHECK_MESSAGE(cases[i].message);
        CHECK(model == NULL);
    }
    bw_model *model = NULL;
    CHECK_STATUS(parse("{\"boxwood_model\":2,\"news\":[]}", &model), BW_VERSION);
    CHECK_MESSAGE("update Boxwood");
    CHECK_STATUS(bw_model_from_json(NULL, 0, &model, &error), BW_INVALID);
    CHECK_STATUS(bw_model_from_json("{}", BW_MAX_JSON_BYTES + 1, &model, &error), BW_INVALID);
    CHECK_MESSAGE("64 MiB");
    CHECK(bw_model_from_json("{", 1, &model, NULL) == BW_INVALID);
}

/* `estimators` estimators of `boxes` boxes each */
static int32_t parse_many(uint32_t estimators, uint32_t boxes, bw_model **model) {
    bw_text text = {0};
    bw_text_append(&text, HEAD "[");
    for (uint32_t e = 0; e < estimators; e++) {
        bw_text_append(&text, e > 0 ? ",[" : "[");
        for (uint32_t b = 0; b < boxes; b++) {
            bw_text_append(&text, "%s[[%u,%u,200]]", b > 0 ? "," : "", (e + b) % 32, b % 200);
        }
        bw_text_append(&text, "]");
    }
    bw_text_append(&text, "],\"threshold\":1}");
    int32_t status = parse(text.data, model);
    bw_free(text.data);
    return status;
}

static void test_limits(void) {
    bw_model *model = NULL;
    bw_model_info info;
    CHECK_STATUS(parse_many(BW_MAX_ESTIMATORS, 64, &model), BW_OK);
    bw_model_describe(model, &info);
    CHECK(info.estimators == 1024 && info.boxes == 65536 && info.ranges == 65536 && info.threshold == 1);
    bw_model_free(model);
    CHECK_STATUS(parse_many(BW_MAX_ESTIMATORS + 1, 1, &model), BW_INVALID);
    CHECK_MESSAGE("at most 1024");
    CHECK_STATUS(parse_many(2, 32769, &model), BW_INVALID);
    CHECK_MESSAGE("estimators[1]: the model has more than 65536 boxes");

    /* the training text: 64 KiB, and nested as deep as the document may be */
    for (int too_much = 0; too_much < 2; too_much++) {
        bw_text text = {0};
        bw_text_append(&text, HEAD "[],\"threshold\":0,\"training\":{\"a\":\"");
        for (int i = 0; i < 65536 - 8 + too_much; i++) {
            bw_text_append(&text, "x");
        }
        bw_text_append(&text, "\"}}");
        CHECK_STATUS(parse(text.data, &model), too_much ? BW_INVALID : BW_OK);
        if (!too_much) {
            bw_model_free(model);
        } else {
            CHECK_MESSAGE("training: 65537 bytes");
        }
        bw_free(text.data);
    }
    uint32_t first_box[2] = {0, 0};
    CHECK_STATUS(bw_model_new("a", "", 0, first_box, NULL, 0, NULL, NULL, NULL,
                              "{\"a\":[[[[[[[[[[[[[[1]]]]]]]]]]]]]]}", &model, &error),
                 BW_OK);
    bw_model_free(model);
    CHECK_STATUS(bw_model_new("a", "", 0, first_box, NULL, 0, NULL, NULL, NULL,
                              "{\"a\":[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]}", &model, &error),
                 BW_INVALID);
    CHECK_STATUS(bw_model_new("a", "", 0, first_box, NULL, 0, NULL, NULL, NULL, "{},{}", &model, &error),
                 BW_INVALID);
    CHECK_STATUS(bw_model_new("a", "", 0, first_box, NULL, 0, NULL, NULL, NULL, "1", &model, &error),
                 BW_INVALID);
}

static void test_parts(void) {
    bw_model *model = NULL;
    uint32_t first_box[3] = {0, 1, 1};
    bw_ranges box = {.count = 2, .dim = {1, 2}, .lo = {3, 4}, .hi = {3, 5}};
    CHECK_STATUS(bw_model_new("a", NULL, 2, first_box, &box, 2, NULL, NULL, NULL, NULL, &model, &error),
                 BW_OK);
    bw_model_free(model);
    bw_ranges bad = box;
    bad.dim[1] = 1;
    CHECK_STATUS(bw_model_new("a", "", 2, first_box, &bad, 2, NULL, NULL, NULL, NULL, &model, &error),
                 BW_INVALID);
    bad = box;
    bad.dim[1] = 32;
    CHECK_STATUS(bw_model_new("a", "", 2, first_box, &bad, 2, NULL, NULL, NULL, NULL, &model, &error),
                 BW_INVALID);
    bad = box;
    bad.lo[0] = 4;
    CHECK_STATUS(bw_model_new("a", "", 2, first_box, &bad, 2, NULL, NULL, NULL, NULL, &model, &error),
                 BW_INVALID);
    bad = box;
    bad.count = 33;
    CHECK_STATUS(bw_model_new("a", "", 2, first_box, &bad, 2, NULL, NULL, NULL, NULL, &model, &error),
                 BW_INVALID);
    uint32_t falling[3] = {0, 1, 0}, late[1] = {1};
    CHECK_STATUS(bw_model_new("a", "", 0, late, &box, 0, NULL, NULL, NULL, NULL, &model, &error), BW_INVALID);
    CHECK_STATUS(bw_model_new("a", "", 2, falling, &box, 2, NULL, NULL, NULL, NULL, &model, &error),
                 BW_INVALID);

    /* the largest scores, and all bits of them */
    static bw_score score = {.terms = 1}, fine = {.terms = 1};
    score.term[0].constant = fine.term[0].constant = BW_MAX_CONSTANT;
    first_box[1] = first_box[2] = 0;
    for (int d = 0; d < BW_FINE_DIMS; d++) {
        score.term[0].linear[d] = d < BW_DIMS ? BW_MAX_LINEAR : 5; /* beyond its dimensions: not looked at */
        score.term[0].square[d] = d < BW_DIMS ? BW_MAX_SQUARE : 5;
        fine.term[0].linear[d] = BW_MAX_FINE_LINEAR;
        fine.term[0].square[d] = BW_MAX_FINE_SQUARE;
    }
    score.votes = BW_MAX_VOTE_SCORE;
    uint32_t *none = test_alloc((BW_MAX_ESTIMATORS + 1) * sizeof *none);
    CHECK_STATUS(
        bw_model_new("a", "", BW_MAX_ESTIMATORS, none, NULL, 2, &score, NULL, NULL, NULL, &model, &error),
        BW_OK);
    CHECK(model->score->term[0].linear[BW_DIMS] == 0 && model->fine == NULL);
    uint8_t code[BW_DIMS], second[BW_FINE_DIMS];
    int64_t value;
    memset(code, 255, sizeof code);
    memset(second, 255, sizeof second);
    CHECK_STATUS(bw_model_evaluate(model, code, NULL, 1, NULL, &value, NULL, &error), BW_OK);
    CHECK_EQUAL(value, BW_MAX_CONSTANT + 32 * 255 * (BW_MAX_LINEAR + 255 * BW_MAX_SQUARE));
    bw_model_free(model);
    free(none);
    CHECK_STATUS(bw_model_new("a", "", 0, first_box, NULL, 0, NULL, "f", &fine, NULL, &model, &error), BW_OK);
    CHECK_STATUS(bw_model_evaluate(model, code, second, 1, NULL, &value, NULL, &error), BW_OK);
    CHECK_EQUAL(value, BW_MAX_CONSTANT + 128 * 255 * (BW_MAX_FINE_LINEAR + 255 * BW_MAX_FINE_SQUARE));
    CHECK_STATUS(bw_model_evaluate(model, code, NULL, 1, NULL, &value, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("fine codes");
    int32_t votes = 5;
    CHECK_STATUS(bw_model_evaluate(model, code, NULL, 1, &votes, NULL, NULL, &error), BW_OK);
    CHECK_EQUAL(votes, 0);
    bw_model_free(model);
    fine.votes = 1;
    CHECK_STATUS(bw_model_new("a", "", 0, first_box, NULL, 0, NULL, "f", &fine, NULL, &model, &error),
                 BW_INVALID);
    CHECK_MESSAGE("fine.votes");

    /* of equal terms one is kept, of the others all */
    score.terms = 4;
    score.term[1] = score.term[3] = score.term[0];
    score.term[2] = score.term[0];
    score.term[2].constant = 1;
    score.term[1].linear[BW_DIMS] = 77;
    CHECK_STATUS(bw_model_new("a", "", 0, first_box, NULL, 0, &score, NULL, NULL, NULL, &model, &error),
                 BW_OK);
    CHECK(model->score->terms == 2 && model->score->term[1].constant == 1);
    bw_model_free(model);
    score.terms = BW_MAX_TERMS + 1;
    CHECK_STATUS(bw_model_new("a", "", 0, first_box, NULL, 0, &score, NULL, NULL, NULL, &model, &error),
                 BW_INVALID);
    CHECK_MESSAGE("1 to 8");
}

static void test_evaluate(void) {
    bw_model *model = NULL;
    CHECK_STATUS(parse("{\"boxwood_model\":1,\"learner\":\"x\",\"dims\":32,\"quantizer\":\"abc\","
                       "\"estimators\":[[[[0,10,20],[2,5,5]],[[1,100,255]]],[[]],[]],\"threshold\":2,"
                       "\"score\":{\"terms\":[" TERM("3", "-2",
                                                     "7") "],\"votes\":1000,\"shift\":1,\"threshold\":1200}}",
                       &model),
                 BW_OK);
    uint8_t codes[4][BW_DIMS] = {{10, 0, 5}, {21, 100, 5}, {20, 99, 4}, {255, 255, 0}};
    int32_t votes[4], expected_votes[4] = {2, 2, 1, 2};
    uint8_t match[4], expected_match[4] = {1, 1, 0, 0};
    int64_t scores[4],
        expected_scores[4] = {2007 + 30 - 200, 2007 + 63 - 882, 1007 + 60 - 800, 2007 + 765 - 130050};
    expected_match[1] = expected_scores[1] >= 1200;
    CHECK_STATUS(bw_model_evaluate(model, codes[0], NULL, 4, votes, scores, match, &error), BW_OK);
    for (int i = 0; i < 4; i++) {
        CHECK_EQUAL(votes[i], expected_votes[i]);
        CHECK_EQUAL(scores[i], expected_scores[i]);
        CHECK_EQUAL(match[i], expected_match[i]);
    }
    CHECK_STATUS(bw_model_evaluate(model, codes[0], NULL, 4, NULL, NULL, NULL, &error), BW_OK);
    CHECK_STATUS(bw_model_evaluate(model, NULL, NULL, 0, votes, scores, match, &error), BW_OK);
    CHECK_STATUS(bw_model_evaluate(model, NULL, NULL, 1, votes, scores, match, &error), BW_INVALID);

    bw_model_info info;
    bw_model_describe(model, &info);
    CHECK(strcmp(info.learner, "x") == 0 && strcmp(info.quantizer, "abc") == 0 && info.estimators == 3 &&
          info.boxes == 3 && info.ranges == 3 && info.has_score == 1 && info.has_score_threshold == 1 &&
          info.score_terms == 1 && info.score_threshold == 1200 && info.score_shift == 1 && !info.has_fine &&
          info.fine_terms == 0 && info.result_shift == 1);
    bw_range ranges[3];
    bw_model_ranges(model, ranges);
    CHECK(ranges[0].estimator == 0 && ranges[0].box == 0 && ranges[0].dim == 0 && ranges[0].lo == 10 &&
          ranges[0].hi == 20);
    CHECK(ranges[1].box == 0 && ranges[1].dim == 2 && ranges[2].box == 1 && ranges[2].dim == 1 &&
          ranges[2].lo == 100);
    bw_model_free(model);

    /* without a score the votes are the score */
    CHECK_STATUS(parse(HEAD "[[[[0,1,1]]],[[]]],\"threshold\":0}", &model), BW_OK);
    uint8_t zero[BW_DIMS] = {0};
    CHECK_STATUS(bw_model_evaluate(model, zero, NULL, 1, votes, scores, match, &error), BW_OK);
    CHECK(votes[0] == 1 && scores[0] == 1 && match[0] == 1);
    bw_model_free(model);

    /* the largest of several terms; then the fine score, and both cuts */
    CHECK_STATUS(parse(HEAD "[],\"threshold\":0,\"score\":{\"terms\":[" TERM("3", "0", "1") "," TERM(
                           "-2", "0", "100") "]," CUT("90") "},\"fine\":{\"quantizer\":\"f\",\"terms\":"
                                                            "[" FINE_TERM("1", "0", "0") "," FINE_TERM(
                                                                "0", "0", "4") "],\"shift\":"
                                                                               "2,"
                                                                               "\"threshold"
                                                                               "\":6}}",
                       &model),
                 BW_OK);
    uint8_t firsts[4][BW_DIMS] = {{4}, {20}, {30}, {200}};
    uint8_t fines[4][BW_FINE_DIMS] = {{9, 255}, {9}, {5}, {6}};
    uint8_t both[4] = {1, 0, 0, 1};
    CHECK_STATUS(bw_model_evaluate(model, firsts[0], fines[0], 4, votes, scores, match, &error), BW_OK);
    CHECK(memcmp(match, both, 4) == 0 && scores[0] == 9 && scores[1] == 9 && scores[2] == 5 &&
          scores[3] == 6);
    bw_model_describe(model, &info);
    CHECK(info.score_terms == 2 && info.has_fine == 1 && info.fine_terms == 2 &&
          info.has_fine_threshold == 1 && info.fine_threshold == 6 && info.fine_shift == 2 &&
          info.result_shift == 2 && strcmp(info.fine_quantizer, "f") == 0);
    bw_model_free(model);
}

static void check_sql(const char *json, const char *expected) {
    bw_model *model = NULL;
    char *sql = NULL;
    CHECK_STATUS(parse(json, &model), BW_OK);
    CHECK_STATUS(bw_model_to_sql(model, &sql, &error), BW_OK);
    if (!CHECK(strcmp(sql, expected) == 0)) {
        printf("    %s\n    %s\n", expected, sql);
    }
    bw_free(sql);
    bw_model_free(model);
}

static void test_sql(void) {
    check_sql(HEAD "[[[[3,12,80],[7,0,99],[8,4,4],[9,7,255],[10,0,255]]]],\"threshold\":1}",
              "(d03 BETWEEN 12 AND 80 AND d07 <= 99 AND d08 = 4 AND d09 >= 7)");
    check_sql(HEAD "[[[[3,12,80]],[[1,5,200]]]],\"threshold\":1}",
              "((d03 BETWEEN 12 AND 80) OR (d01 BETWEEN 5 AND 200))");
    check_sql(HEAD "[[[[3,0,1]]],[[[4,0,1]],[[5,0,1]]],[[[6,0,1]]]],\"threshold\":2}",
              "((CAST((d03 <= 1) AS INTEGER) + CAST(((d04 <= 1) OR (d05 <= 1)) AS INTEGER) + CAST((d06 <= 1) "
              "AS INTEGER)) >= 2)");
    check_sql(HEAD "[[[[3,0,1]]],[[[4,0,1]]]],\"threshold\":2}", "((d03 <= 1) AND (d04 <= 1))");
    check_sql(HEAD "[[[[3,0,1]]],[[[4,0,1]]]],\"threshold\":1}", "((d03 <= 1) OR (d04 <= 1))");
    check_sql(HEAD "[[[[3,0,1]]],[[[4,0,255]]],[]],\"threshold\":2}", "(d03 <= 1)");
    check_sql(HEAD "[[[[3,0,1]]],[[]],[]],\"threshold\":1}", "TRUE");
    check_sql(HEAD "[[[[3,0,1]]],[],[]],\"threshold\":2}", "FALSE");
    check_sql(HEAD "[],\"threshold\":0}", "TRUE");
    check_sql(SCORE("-3", "2", "-40", CUT("5")),
              "(-3 * CAST(d00 AS BIGINT) + 2 * CAST(d00 AS BIGINT) * CAST(d00 AS BIGINT) - 40 >= 5)");
    check_sql(SCORE("0", "0", "-40", CUT("5")), "(-40 >= 5)");
    check_sql(SCORE("1", "0", "0", CUT("9007199254740992")), "FALSE");
    check_sql(SCORE("1", "0", "0", CUT("-9223372036854775808")), "TRUE");
    check_sql(SCORE("1", "0", "0", CUT("null")), "TRUE");
    check_sql(SCORES(TERM("1", "0", "-7") "," TERM("0", "-1", "0") "," TERM("0", "0", "3"), CUT("5")),
              "(greatest(1 * CAST(d00 AS BIGINT) - 7, -1 * CAST(d00 AS BIGINT) * CAST(d00 AS BIGINT), 3) >= "
              "5)");
    check_sql(HEAD "[[[[3,0,1]]],[[]]],\"threshold\":2,\"score\":{\"terms\":[" TERM("1", "0", "0") "," TERM(
                  "2", "0", "0") "],\"votes\":10,\"shift\":0,\"threshold\":5}}",
              "((d03 <= 1) AND (10 * CAST(CAST((d03 <= 1) AS INTEGER) AS BIGINT) + greatest(1 * CAST(d00 AS "
              "BIGINT), 2 * CAST(d00 AS BIGINT)) + 10 >= 5))");
    check_sql(FINE(FINE_TERM("-3", "0", "-9"), FINE_CUT("5")), "((-3 * CAST(fine[1] AS BIGINT)) - 9 >= 5)");
    check_sql(FINE(FINE_TERM("-3", "0", "-9"), FINE_CUT("null")), "TRUE");
    check_sql(HEAD "[],\"threshold\":0,\"score\":{\"terms\":[" TERM("1", "0", "0") "]," CUT(
                  "5") "},\"fine\":{\"terms\":[{\"linear\":[1," MORE "," ZEROS "],\"square\":[0," ZEROS
                       ",2," ZEROS ",0," ZEROS ",0," ZEROS
                       "],\"constant\":0}],\"shift\":0,\"threshold\":-6}}",
              "((1 * CAST(d00 AS BIGINT) >= 5) AND ((1 * CAST(fine[1] AS BIGINT)) + (2 * CAST(fine[33] AS "
              "BIGINT) * CAST(fine[33] AS BIGINT)) >= -6))");
}

#ifdef BW_FAULTS
static void test_faults(void) {
    const char *json = HEAD
        "[[[[3,12,80]],[[1,5,200]]]],\"threshold\":1,\"score\":{\"terms\":[" TERM("1", "0", "0") "]," CUT(
            "1") "},\"fine\":{\"quantizer\":\"f\",\"terms\":[" FINE_TERM("1", "0",
                                                                         "0") "]," FINE_CUT("1") "},"
                                                                                                 "\"training"
                                                                                                 "\":{\"a\":"
                                                                                                 "1}}";
    int32_t status = BW_NOMEM;
    for (long n = 0; status == BW_NOMEM && n < 1000; n++) {
        bw_model *model = NULL, *copy = NULL;
        char *text = NULL, *sql = NULL;
        bw_fault_set(BW_FAULT_ALLOC, n);
        status = parse(json, &model);
        status = status ? status : bw_model_copy(model, &copy, &error);
        status = status ? status : bw_model_to_json(copy, &text, &error);
        status = status ? status : bw_model_to_sql(copy, &sql, &error);
        bw_fault_set(BW_FAULT_ALLOC, -1);
        CHECK(status == BW_OK || status == BW_NOMEM);
        CHECK(status == BW_NOMEM || n > 10);
        bw_free(text);
        bw_free(sql);
        bw_model_free(model);
        bw_model_free(copy);
    }
    CHECK(status == BW_OK);
}
#endif

int main(void) {
    test_round_trips();
    test_refusals();
    test_limits();
    test_parts();
    test_evaluate();
    test_sql();
#ifdef BW_FAULTS
    test_faults();
#endif
    return test_finish();
}
