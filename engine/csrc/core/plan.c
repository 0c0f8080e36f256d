/* plan.c - a model taken apart: what each box finds by itself and what all find together, what that costs,
 * and what was expected of it. */
#include "search.h"

#include <string.h>

#define BOX_BLOCKS 64   /* of the sample, for a box */
#define MODEL_BLOCKS 64 /* for the model, row by row */

/* How many rows of the index the model matches, by the sample. */
static int32_t estimate_rows(const bw_index *index, const bw_model *model, double *rows, bw_error *error) {
    bw_sample sample;
    int32_t status = bw_sample_draw(index, MODEL_BLOCKS, &sample, error);
    if (status != BW_OK) {
        return status;
    }
    for (uint32_t s = 0; status == BW_OK && s < sample.blocks; s++) {
        uint8_t codes[BW_BLOCK_ROWS * BW_DIMS], fine[BW_BLOCK_ROWS * BW_FINE_DIMS], match[BW_BLOCK_ROWS];
        bw_sample_block *block = &sample.block[s];
        for (uint32_t r = 0; r < block->rows; r++) {
            for (uint32_t d = 0; d < BW_DIMS; d++) {
                codes[r * BW_DIMS + d] = block->codes[d * BW_BLOCK_ROWS + r];
            }
            if (model->fine) {
                const uint8_t *all = index->segments[block->segment]->fine;
                memcpy(fine + r * BW_FINE_DIMS, all + (size_t)bw_sample_row(index, block, r) * BW_FINE_DIMS,
                       BW_FINE_DIMS);
            }
        }
        status = bw_model_evaluate(model, codes, fine, block->rows, NULL, NULL, match, error);
        block->found = 0;
        for (uint32_t r = 0; status == BW_OK && r < block->rows; r++) {
            block->found += match[r] && (block->live[r / 64] >> r % 64 & 1);
        }
    }
    *rows = status == BW_OK ? bw_sample_total(index, &sample) : 0;
    bw_free(sample.block);
    return status;
}

/* Counts what the model matches. One thread, so that the times of boxes and whole can be compared. */
static int32_t run(const bw_index *index, const bw_model *model, bw_box_report *report, bw_error *error) {
    bw_stats stats;
    bw_estimate estimate;
    int32_t status = bw_search_run_path(index, model, BW_COUNT_ONLY, BW_PATH_CHOOSE, 1, NULL, NULL, &stats,
                                        &estimate, error);
    if (status != BW_OK) {
        return status;
    }
    memset(report, 0, sizeof *report);
    strcpy(report->path, bw_path_name(estimate.path));
    report->estimated_blocks = estimate.blocks;
    report->estimated_nanoseconds = estimate.nanoseconds;
    report->rows = stats.rows;
    report->blocks = stats.blocks;
    report->blocks_pruned = stats.blocks_pruned;
    report->blocks_outscored = stats.blocks_outscored;
    report->blocks_contained = stats.blocks_contained;
    report->blocks_planes = stats.blocks_planes;
    report->blocks_scanned = stats.blocks_scanned;
    report->fine_rows = stats.fine_rows;
    report->bytes = stats.bytes;
    report->nanoseconds = stats.nanoseconds;
    return BW_OK;
}

static int32_t explain_box(const bw_index *index, const bw_model *model, bw_sample *sample,
                           uint32_t estimator, uint32_t box, bw_box_report *report, bw_error *error) {
    const bw_ranges *ranges = &model->boxes[box];
    const uint32_t first_box[2] = {0, 1};
    bw_model *alone;
    int32_t status = bw_model_new(model->learner, model->quantizer, 1, first_box, ranges, 1, NULL, NULL, NULL,
                                  NULL, &alone, error);
    if (status != BW_OK) {
        return status;
    }
    status = run(index, alone, report, error);
    bw_model_free(alone);
    if (status == BW_OK) {
        report->estimator = estimator;
        report->box = box - model->first_box[estimator];
        report->ranges = ranges->count;
        report->estimated_rows = bw_sample_estimate(index, sample, bw_kernels_get(), ranges, 1);
    }
    return status;
}

int32_t bw_explain(const bw_index *index, const bw_model *model, bw_box_report *reports, bw_box_report *whole,
                   bw_error *error) {
    if (!index || !model || !whole || (!reports && bw_model_boxes(model) > 0)) {
        return bw_fail(error, BW_INVALID,
                       "an explanation needs an index, a model, a report for each box and one for the whole");
    }
    /* The whole model first: it finds out whether model and index belong together. */
    bw_box_report total;
    bw_sample sample = {0};
    int32_t status = run(index, model, &total, error);
    if (status == BW_OK) {
        status = estimate_rows(index, model, &total.estimated_rows, error);
    }
    if (status == BW_OK) {
        status = bw_sample_draw(index, BOX_BLOCKS, &sample, error);
    }
    for (uint32_t e = 0; status == BW_OK && e < model->estimators; e++) {
        for (uint32_t b = model->first_box[e]; status == BW_OK && b < model->first_box[e + 1]; b++) {
            status = explain_box(index, model, &sample, e, b, &reports[b], error);
            total.ranges += status == BW_OK ? reports[b].ranges : 0;
        }
    }
    bw_free(sample.block);
    if (status == BW_OK) {
        total.estimator = model->estimators;
        total.box = bw_model_boxes(model);
        *whole = total;
    }
    return status;
}
