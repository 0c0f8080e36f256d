/* plan.c - a model taken apart: what each box finds by itself, what that costs, and what was expected of it.
 */
#include "search.h"

#include <string.h>

#define SAMPLE_ROWS 4096

/* A model of one box, which matches its rows. */
static int32_t one_box(const bw_model *model, const bw_ranges *box, bw_model **made, bw_error *error) {
    const uint32_t first_box[2] = {0, 1};
    return bw_model_new(model->learner, model->quantizer, 1, first_box, box, 1, NULL, NULL, made, error);
}

static int32_t explain_box(const bw_index *index, const bw_model *model, const bw_sample *sample,
                           uint32_t estimator, uint32_t box, bw_box_report *report, bw_error *error) {
    const bw_ranges *ranges = &model->boxes[box];
    bw_model *alone;
    bw_stats stats;
    int32_t status = one_box(model, ranges, &alone, error);
    if (status != BW_OK) {
        return status;
    }
    /* One thread, so that the times of boxes and whole can be compared. */
    status = bw_search_run(index, alone, BW_COUNT_ONLY, 1, NULL, NULL, &stats, error);
    bw_model_free(alone);
    if (status != BW_OK) {
        return status;
    }
    memset(report, 0, sizeof *report);
    report->estimator = estimator;
    report->box = box - model->first_box[estimator];
    report->ranges = ranges->count;
    if (sample->rows > 0) {
        uint32_t inside = bw_sample_count(sample, bw_kernels_get(), ranges, 1);
        report->estimated_rows = (double)inside * (double)index->info.rows / sample->rows;
    }
    strcpy(report->path, stats.blocks > 0 && stats.blocks_scanned == stats.blocks ? "scan" : "zones");
    report->rows = stats.rows;
    report->blocks = stats.blocks;
    report->blocks_pruned = stats.blocks_pruned;
    report->blocks_contained = stats.blocks_contained;
    report->blocks_scanned = stats.blocks_scanned;
    report->bytes = stats.bytes;
    report->nanoseconds = stats.nanoseconds;
    return BW_OK;
}

int32_t bw_explain(const bw_index *index, const bw_model *model, bw_box_report *reports, bw_stats *total,
                   bw_error *error) {
    if (!index || !model || !total || (!reports && bw_model_boxes(model) > 0)) {
        return bw_fail(error, BW_INVALID,
                       "an explanation needs an index, a model, a report for each box and a total");
    }
    /* The whole model first: it finds out whether model and index belong together. */
    int32_t status = bw_search_run(index, model, BW_COUNT_ONLY, 1, NULL, NULL, total, error);
    if (status != BW_OK) {
        return status;
    }
    bw_sample sample;
    status = bw_sample_draw(index, SAMPLE_ROWS, &sample, error);
    if (status != BW_OK) {
        return status;
    }
    for (uint32_t e = 0; status == BW_OK && e < model->estimators; e++) {
        for (uint32_t b = model->first_box[e]; status == BW_OK && b < model->first_box[e + 1]; b++) {
            status = explain_box(index, model, &sample, e, b, &reports[b], error);
        }
    }
    bw_free(sample.codes);
    return status;
}
