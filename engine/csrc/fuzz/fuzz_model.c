/* fuzz_model.c - any bytes as a model document: refused with a message, or a model that survives its own
 * round trip. */
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t fuzz_seed(uint8_t *buffer, size_t capacity, unsigned number);

static void require(bool holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "broken: %s\n", what);
        abort();
    }
}

static char *write_json(const bw_model *model) {
    char *json = NULL;
    bw_error error;
    require(bw_model_to_json(model, &json, &error) == BW_OK, "a model can be written");
    return json;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bw_model *model = NULL, *again = NULL;
    bw_error error = {0};
    int32_t status = bw_model_from_json((const char *)data, size, &model, &error);
    if (status != BW_OK) {
        require(model == NULL && error.code == status && error.message[0] != 0, "a refusal says why");
        return 0;
    }
    char *json = write_json(model), *sql = NULL;
    require(bw_model_from_json(json, strlen(json), &again, &error) == BW_OK, "what is written can be read");
    char *json_again = write_json(again);
    require(strcmp(json, json_again) == 0, "the round trip changes nothing");
    require(bw_model_to_sql(model, &sql, &error) == BW_OK && sql[0] != 0, "there is SQL for it");

    bw_model_info info;
    bw_model_describe(model, &info);
    bw_range *ranges = malloc(((size_t)info.ranges + 1) * sizeof *ranges);
    require(ranges != NULL, "memory");
    bw_model_ranges(model, ranges);
    uint8_t codes[4 * BW_DIMS], fine[4 * BW_FINE_DIMS], match[4], match_again[4];
    int32_t votes[4];
    int64_t scores[4];
    for (size_t i = 0; i < sizeof codes; i++) {
        codes[i] = (uint8_t)(i * 37 + size);
    }
    for (size_t i = 0; i < sizeof fine; i++) {
        fine[i] = (uint8_t)(i * 91 + size);
    }
    require(bw_model_evaluate(model, codes, fine, 4, votes, scores, match, &error) == BW_OK,
            "rows can be evaluated");
    require(bw_model_evaluate(again, codes, fine, 4, NULL, NULL, match_again, &error) == BW_OK,
            "so they can again");
    require(memcmp(match, match_again, 4) == 0, "the copy matches the same rows");
    for (int i = 0; i < 4; i++) {
        require(votes[i] >= 0 && (uint32_t)votes[i] <= info.estimators, "votes are at most the estimators");
        require(scores[i] > -(INT64_C(1) << 53) && scores[i] < INT64_C(1) << 53, "scores stay below 2^53");
    }
    free(ranges);
    bw_free(json);
    bw_free(json_again);
    bw_free(sql);
    bw_model_free(model);
    bw_model_free(again);
    return 0;
}

#define MORE "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,"
#define ZEROS "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0"

size_t fuzz_seed(uint8_t *buffer, size_t capacity, unsigned number) {
    static const char *const seeds[] = {
        "{\"boxwood_model\":1,\"learner\":\"ensemble\",\"dims\":32,\"quantizer\":\"5f0c\",\"estimators\":[[[["
        "3,12,80],[7,0,"
        "99]],[[1,5,200]]],[[[3,20,90]]]],\"threshold\":2,\"score\":{\"terms\":[{\"linear\":[20," ZEROS
        "],\"square\":[-1," ZEROS "],\"constant\":-40000},{\"linear\":[2," ZEROS "],\"square\":[1," ZEROS
        "],\"constant\":-1}],\"votes\":2097152,\"shift\":21,\"threshold\":null},"
        "\"training\":{\"positives\":12}}",
        "{\"boxwood_model\":1,\"learner\":\"tree\",\"dims\":32,\"estimators\":[[[]],[]],\"threshold\":0}",
        "{\"boxwood_model\":1,\"learner\":\"a\",\"dims\":32,\"quantizer\":\"\",\"estimators\":[[[[0,0,255],["
        "31,7,7]]]],"
        "\"threshold\":1,\"score\":{\"terms\":[{\"linear\":[-274877906944," ZEROS
        "],\"square\":[1073741824," ZEROS
        "],\"constant\":-2251799813685248}],\"votes\":-1099511627776,\"shift\":40,\"threshold\":-"
        "9223372036854775808}}",
        "{\"boxwood_model\":1,\"learner\":\"fine\",\"dims\":32,\"estimators\":[],\"threshold\":0,\"fine\":{"
        "\"quantizer\":\"f\",\"terms\":[{\"linear\":[68719476736," MORE MORE MORE ZEROS
        "],\"square\":[-268435456," MORE MORE MORE ZEROS
        "],\"constant\":2251799813685248}],\"shift\":4,\"threshold\":12}}",
        "{\"boxwood_model\" : 1, \"learner\":\"\\u0061\", \"dims\":32, \"estimators\":[], \"threshold\":0,\n"
        "\"training\": {\"note\": \"\\ud83d\\ude00 \\\"x\\\\\", \"weights\": [1.5e-3, null, true]} }",
    };
    if (number >= sizeof seeds / sizeof *seeds || strlen(seeds[number]) > capacity) {
        return 0;
    }
    memcpy(buffer, seeds[number], strlen(seeds[number]));
    return strlen(seeds[number]);
}
