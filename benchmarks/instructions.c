/* instructions.c - one workload on one index, through boxwood.h alone, for a tool that counts instructions.
 *
 *     instructions INDEX ISA REPEATS search|count MODEL.json
 *     instructions INDEX ISA REPEATS knn QUERIES.u8 RECALL
 *
 * Everything that is to be counted happens below measured(), on one thread.
 */
#include "boxwood.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { K = 60 };

typedef struct work {
    const bw_index *index;
    const bw_model *model;
    uint32_t flags;
    const char *queries;
    size_t n;
    bw_knn_options options;
    int64_t *ids;
    uint32_t *distances, *counts;
    bw_error error;
} work;

static char *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    long size = -1;
    if (file != NULL && fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) >= 0) {
        rewind(file);
    }
    char *content = size < 0 ? NULL : malloc((size_t)size + 1);
    if (content != NULL && fread(content, 1, (size_t)size, file) != (size_t)size) {
        free(content);
        content = NULL;
    }
    if (file != NULL) {
        fclose(file);
    }
    if (content != NULL) {
        content[size] = 0;
        *bytes = (size_t)size;
    }
    return content;
}

__attribute__((noinline)) int32_t measured(work *todo) {
    if (todo->queries != NULL) {
        return bw_knn(todo->index, (const uint8_t *)todo->queries, todo->n, &todo->options, todo->ids,
                      todo->distances, todo->counts, NULL, &todo->error);
    }
    bw_rows *rows = NULL;
    int32_t status = bw_search_run(todo->index, todo->model, todo->flags, 1, NULL,
                                   todo->flags == BW_COUNT_ONLY ? NULL : &rows, NULL, &todo->error);
    bw_rows_free(rows);
    return status;
}

static int failed(const char *message) {
    fprintf(stderr, "instructions: %s\n", message);
    return 1;
}

int main(int argc, char **argv) {
    if (argc < 6) {
        return failed("usage: instructions INDEX ISA REPEATS search|count|knn FILE [RECALL]");
    }
    work todo = {0};
    bw_index *index = NULL;
    bw_model *model = NULL;
    size_t bytes = 0;
    char *content = read_file(argv[5], &bytes);
    if (content == NULL) {
        return failed("cannot read the file of the workload");
    }
    if (bw_isa_select(argv[2], &todo.error) || bw_index_open(argv[1], &index, &todo.error)) {
        return failed(todo.error.message);
    }
    todo.index = index;
    if (strcmp(argv[4], "knn") == 0) {
        todo.queries = content;
        todo.n = bytes / BW_DIMS;
        todo.options.k = K;
        todo.options.threads = 1;
        todo.options.recall = argc > 6 ? atof(argv[6]) : 1;
        todo.ids = calloc(todo.n * K, sizeof *todo.ids);
        todo.distances = calloc(todo.n * K, sizeof *todo.distances);
        todo.counts = calloc(todo.n, sizeof *todo.counts);
        if (todo.ids == NULL || todo.distances == NULL || todo.counts == NULL) {
            return failed("out of memory");
        }
    } else {
        if (bw_model_from_json(content, bytes, &model, &todo.error)) {
            return failed(todo.error.message);
        }
        todo.model = model;
        todo.flags = strcmp(argv[4], "count") == 0 ? BW_COUNT_ONLY : 0;
    }
    for (int repeat = atoi(argv[3]); repeat > 0; repeat--) {
        if (measured(&todo)) {
            return failed(todo.error.message);
        }
    }
    free(todo.ids);
    free(todo.distances);
    free(todo.counts);
    bw_model_free(model);
    bw_index_close(index);
    free(content);
    return 0;
}
