/* Every table of kernels that this computer can run, against definitions written out row by row. */
#include "kernels.h"
#include "test.h"

enum { UNIFORM, NARROW, TWO_VALUES, ALL_ZERO, ALL_255, EXTREMES, KINDS };

static uint8_t value_of(bw_random *random, int kind) {
    switch (kind) {
    case UNIFORM:
        return (uint8_t)bw_random_next(random);
    case NARROW:
        return (uint8_t)(100 + bw_random_below(random, 8));
    case TWO_VALUES:
        return bw_random_below(random, 2) ? 7 : 200;
    case ALL_ZERO:
        return 0;
    case ALL_255:
        return 255;
    default:
        return (uint8_t)(bw_random_below(random, 4) - 2); /* 254, 255, 0, 1 */
    }
}

/* `count` different dimensions; bounds near the values of the kind as often as anywhere. */
static bw_ranges random_ranges(bw_random *random, uint32_t count, int kind) {
    bw_ranges ranges = {.count = count};
    uint8_t dims[BW_DIMS];
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        uint32_t other = (uint32_t)bw_random_below(random, d + 1);
        dims[d] = dims[other];
        dims[other] = (uint8_t)d;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint8_t a = value_of(random, bw_random_below(random, 2) ? kind : UNIFORM);
        uint8_t b = value_of(random, bw_random_below(random, 2) ? kind : UNIFORM);
        ranges.dim[i] = dims[i];
        ranges.lo[i] = a < b ? a : b;
        ranges.hi[i] = a < b ? b : a;
        switch (
            bw_random_below(random, count < 4 ? 8 : 3)) { /* many ranges must be wide, or no row is inside */
        case 0:
            ranges.hi[i] = 255;
            break;
        case 1:
            ranges.lo[i] = 0;
            break;
        case 2:
            ranges.lo[i] = 0;
            ranges.hi[i] = 255;
            break;
        case 3:
            ranges.lo[i] = ranges.hi[i];
            break;
        default:
            break;
        }
    }
    return ranges;
}

static bool bit(const uint64_t *mask, int place) {
    return mask[place / 64] >> place % 64 & 1;
}

static void test_box(const bw_kernels *kernels) {
    bw_random random = {1};
    unsigned hits = 0, rows = 0, wrong = 0;
    for (int round = 0; round < 3000; round++) {
        int kind = round % KINDS;
        size_t tiles = 1 + bw_random_below(&random, 3), stride = tiles * BW_BLOCK_ROWS;
        uint8_t *tile = bw_alloc_aligned(stride * BW_DIMS);
        for (size_t i = 0; i < stride * BW_DIMS; i++) {
            tile[i] = value_of(&random, kind);
        }
        const uint8_t *block = tile + bw_random_below(&random, tiles) * BW_BLOCK_ROWS;
        bw_ranges ranges = random_ranges(&random, (uint32_t)round / KINDS % (BW_DIMS + 1), kind);
        uint64_t mask[4] = {1, 2, 3, 4}, wanted[4];
        for (int w = 0; w < 4; w++) { /* all rows, some, or none */
            uint64_t kind_of = bw_random_below(&random, 4);
            wanted[w] = kind_of == 0 ? 0 : kind_of == 1 ? bw_random_next(&random) : ~(uint64_t)0;
        }
        bool any = kernels->box(block, stride, &ranges, wanted, mask), expected_any = false;
        for (int r = 0; r < BW_BLOCK_ROWS; r++) {
            bool inside = bit(wanted, r);
            for (uint32_t i = 0; i < ranges.count; i++) {
                uint8_t x = block[ranges.dim[i] * stride + (size_t)r];
                inside = inside && ranges.lo[i] <= x && x <= ranges.hi[i];
            }
            wrong += bit(mask, r) != inside;
            expected_any = expected_any || inside;
            hits += inside;
            rows++;
        }
        wrong += any != expected_any;
        bw_free(tile);
    }
    CHECK_EQUAL(wrong, 0);
    CHECK(hits > rows / 20 && hits < rows - rows / 20); /* the cases must be of both kinds */
}

/* ---- planes ---- */

/* A plane program written out: the boxes' bins. */
typedef struct bin_box {
    uint32_t estimator;
    uint32_t ranges;
    uint8_t dim[BW_DIMS], lo[BW_DIMS], hi[BW_DIMS]; /* of bins, 0 .. 7 */
} bin_box;

static uint32_t bin_at(const uint64_t *planes, uint32_t d, int r) {
    uint32_t bin = 0;
    for (int plane = 0; plane < 3; plane++) {
        bin = 2 * bin + bit(planes + (3 * d + (uint32_t)plane) * 4, r);
    }
    return bin;
}

static void test_planes(const bw_kernels *kernels) {
    static const uint32_t sizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 25, 64, 100, 255, 256, 1024};
    bw_random random = {7};
    unsigned wrong = 0, reached_rows = 0, rows = 0;
    uint64_t *planes = bw_alloc_aligned(4 * 3072); /* two blocks and two further ones to fetch */
    for (int round = 0; round < 300; round++) {
        for (int i = 0; i < 4 * 384; i++) {
            planes[i] = round % 10 == 0 ? 0 : round % 10 == 1 ? ~(uint64_t)0 : bw_random_next(&random);
        }
        uint32_t estimators = sizes[(size_t)round % (sizeof sizes / sizeof sizes[0])];
        uint32_t n = round % 7 == 0 ? 0 : 1 + (uint32_t)bw_random_below(&random, 3 * estimators);
        bin_box *boxes = test_alloc((n + 1) * sizeof *boxes);
        uint64_t *overlaps = test_alloc((n + 1) * sizeof *overlaps);
        uint16_t *code = test_alloc((n + 1) * 65 * sizeof *code), *to = code;
        bw_plane_program program = {.estimators = estimators};
        program.threshold = (uint32_t)bw_random_below(&random, estimators + 2);
        uint32_t made = 0;
        for (uint32_t c = 0; c < BW_PLANE_CLASSES; c++) { /* boxes in the order of their classes */
            program.code[c] = to;
            program.first_box[c] = made;
            uint32_t room = bw_plane_class_ranges[c];
            uint32_t count =
                c + 1 == BW_PLANE_CLASSES ? n - made : (uint32_t)bw_random_below(&random, n - made + 1);
            for (uint32_t i = 0; i < count; i++, made++) {
                uint32_t least = c > 0 ? bw_plane_class_ranges[c - 1] + 1u : 0;
                bw_ranges drawn = random_ranges(&random, room, UNIFORM); /* for its dimensions */
                bin_box *box = &boxes[made];
                box->estimator = (uint32_t)bw_random_below(&random, estimators);
                box->ranges = room > 0 ? least + (uint32_t)bw_random_below(&random, room - least + 1) : 0;
                overlaps[made] = bw_random_below(&random, 4) ? bw_random_next(&random) | 2 : 0;
                *to++ = (uint16_t)box->estimator;
                for (uint32_t r = 0; r < room; r++) {
                    uint32_t lo = r < box->ranges ? (uint32_t)bw_random_below(&random, 3) : 0;
                    uint32_t hi = r < box->ranges ? 5 + (uint32_t)bw_random_below(&random, 3) : 7;
                    if (r < box->ranges && box->ranges < 4) { /* narrow ones among few */
                        lo = (uint32_t)bw_random_below(&random, 8);
                        hi = lo + (uint32_t)bw_random_below(&random, 8 - lo);
                    }
                    box->dim[r] = drawn.dim[r];
                    box->lo[r] = (uint8_t)lo;
                    box->hi[r] = (uint8_t)hi;
                    *to++ = (uint16_t)(64 * (lo > 0 ? 8u * drawn.dim[r] + lo : BW_PLANES_ALL));
                    *to++ = (uint16_t)(64 * (hi < 7 ? 8u * drawn.dim[r] + hi + 1 : BW_PLANES_NONE));
                    if (lo > 0 || hi < 7) {
                        program.dims |= (uint32_t)1 << drawn.dim[r];
                    }
                }
            }
        }
        program.first_box[BW_PLANE_CLASSES] = made;
        uint64_t pair = round % 3 ? 6 : 1 | (uint64_t)1 << 63, reached[2][4];
        const uint64_t *p = planes, *q = round % 5 ? planes + 384 : planes;
        const uint8_t *next[2] = {(const uint8_t *)(planes + 2 * 384), (const uint8_t *)(planes + 3 * 384)};
        void *work = bw_alloc_aligned(BW_PLANES_WORK(estimators, made));
        bool any = kernels->planes(p, q, round % 2 ? next : NULL, &program, overlaps, pair, work, reached);
        bool expected_any = false;
        for (int k = 0; k < 2; k++) {
            const uint64_t *block = k == 0 ? p : q;
            for (int r = 0; r < BW_BLOCK_ROWS; r++) {
                uint32_t votes = 0, voted = UINT32_MAX;
                uint8_t voters[1024] = {0};
                for (uint32_t b = 0; b < made; b++) {
                    bool inside = (overlaps[b] & pair) != 0;
                    for (uint32_t i = 0; inside && i < boxes[b].ranges; i++) {
                        uint32_t bin = bin_at(block, boxes[b].dim[i], r);
                        inside = boxes[b].lo[i] <= bin && bin <= boxes[b].hi[i];
                    }
                    voted = boxes[b].estimator;
                    votes += inside && !voters[voted];
                    voters[voted] |= inside;
                }
                wrong += bit(reached[k], r) != (votes >= program.threshold);
                expected_any = expected_any || votes >= program.threshold;
                reached_rows += votes >= program.threshold;
                rows++;
            }
        }
        wrong += any != expected_any;
        bw_free(work);
        free(boxes);
        free(overlaps);
        free(code);
    }
    bw_free(planes);
    CHECK_EQUAL(wrong, 0);
    CHECK(reached_rows > rows / 20 && reached_rows < rows - rows / 20);
}

static void test_gather(const bw_kernels *kernels) {
    bw_random random = {8};
    unsigned wrong = 0;
    uint8_t *from = bw_alloc_aligned(BW_DIMS * 256), *to = bw_alloc_aligned(BW_GATHER_STRIDE * BW_DIMS);
    for (int round = 0; round < 500; round++) {
        for (int i = 0; i < BW_DIMS * 256; i++) {
            from[i] = (uint8_t)bw_random_next(&random);
        }
        memset(to, 7, BW_GATHER_STRIDE * BW_DIMS);
        uint32_t dims = round % 3 ? (uint32_t)bw_random_next(&random) : UINT32_MAX;
        uint32_t count = 0;
        for (int w = 0; w < 4; w++) {
            uint64_t rows = round % 4 == 0 ? ~(uint64_t)0 : bw_random_next(&random) & bw_random_next(&random);
            kernels->gather(from + 64 * w, 256, dims, rows, to + count);
            for (int r = 0; r < 64; r++) {
                if (!bit(&rows, r)) {
                    continue;
                }
                for (size_t d = 0; d < BW_DIMS; d++) {
                    uint8_t expected = dims >> d & 1 ? from[256 * d + 64 * (size_t)w + (size_t)r] : 7;
                    wrong += to[d * BW_GATHER_STRIDE + count] != expected;
                }
                count++;
            }
        }
    }
    bw_free(from);
    bw_free(to);
    CHECK_EQUAL(wrong, 0);
}

static void test_zones(const bw_kernels *kernels) {
    bw_random random = {2};
    unsigned overlapping = 0, inside = 0, wrong = 0;
    for (int round = 0; round < 2000; round++) {
        int kind = round % KINDS;
        size_t groups = 1 + bw_random_below(&random, 3), stride = groups * 64;
        uint8_t *low = bw_alloc_aligned(stride * BW_DIMS), *high = bw_alloc_aligned(stride * BW_DIMS);
        for (size_t i = 0; i < stride * BW_DIMS; i++) {
            uint8_t a = value_of(&random, kind),
                    b = bw_random_below(&random, 4) ? a : value_of(&random, kind);
            low[i] = a < b ? a : b;
            high[i] = a < b ? b : a;
        }
        size_t b = bw_random_below(&random, groups) * 64;
        bw_ranges ranges = random_ranges(&random, (uint32_t)round / KINDS % (BW_DIMS + 1), kind);
        uint64_t overlaps = 0, contained = 0;
        kernels->zones(low, high, stride, b, &ranges, &overlaps, &contained);
        for (int k = 0; k < 64; k++) {
            bool some = true, all = true;
            for (uint32_t i = 0; i < ranges.count; i++) {
                size_t at = ranges.dim[i] * stride + b + (size_t)k;
                some = some && low[at] <= ranges.hi[i] && high[at] >= ranges.lo[i];
                all = all && low[at] >= ranges.lo[i] && high[at] <= ranges.hi[i];
            }
            wrong += bit(&overlaps, k) != some;
            wrong += bit(&contained, k) != all;
            overlapping += some;
            inside += all;
        }
        bw_free(low);
        bw_free(high);
    }
    CHECK_EQUAL(wrong, 0);
    CHECK(inside > 1000 && overlapping > inside + 1000 && overlapping < 2000 * 64 - 1000);
}

/* Places past the last block, minimum 255 and maximum 0, must not upset a kernel. */
static void test_zone_padding(const bw_kernels *kernels) {
    uint8_t *low = bw_alloc_aligned(64 * BW_DIMS), *high = bw_alloc_aligned(64 * BW_DIMS);
    memset(low, 255, 64 * BW_DIMS);
    memset(high, 0, 64 * BW_DIMS);
    for (int d = 0; d < BW_DIMS; d++) {
        low[d * 64] = high[d * 64] = 9;
    }
    bw_ranges ranges = {.count = 2, .dim = {3, 31}, .lo = {9, 1}, .hi = {9, 254}};
    uint64_t overlaps, contained;
    kernels->zones(low, high, 64, 0, &ranges, &overlaps, &contained);
    CHECK_EQUAL(overlaps, 1);
    CHECK_EQUAL(contained, 1);
    uint8_t query[BW_DIMS] = {0};
    uint32_t bounds[64];
    kernels->zone_distances(low, high, 64, 0, query, bounds);
    CHECK_EQUAL(bounds[0], 32 * 81);
    bw_free(low);
    bw_free(high);
}

/* `near` with limits below, at and above the distances that there are, among them those where 16 bits end. */
static void test_distances(const bw_kernels *kernels) {
    bw_random random = {3};
    unsigned wrong = 0, found = 0;
    for (int round = 0; round < 1200; round++) {
        int kind = round % KINDS;
        size_t groups = 1 + bw_random_below(&random, 5), stride = groups * 64;
        uint8_t *all = bw_alloc_aligned(stride * BW_DIMS), query[BW_DIMS], order[BW_DIMS];
        for (size_t i = 0; i < stride * BW_DIMS; i++) {
            all[i] = value_of(&random, kind);
        }
        for (int d = 0; d < BW_DIMS; d++) { /* every third round: as far away as can be */
            query[d] = round % 3 == 0 ? (uint8_t)(kind == ALL_255 ? 0 : 255) : value_of(&random, UNIFORM);
            if (round / KINDS % 3 == 2) { /* near */
                query[d] = value_of(&random, kind);
            }
            int other = (int)bw_random_below(&random, (uint64_t)d + 1);
            order[d] = order[other];
            order[other] = (uint8_t)d;
        }
        const uint8_t *points = all + bw_random_below(&random, groups) * 64;
        uint32_t distances[64];
        kernels->distances(points, stride, query, distances);
        for (int i = 0; i < 64; i++) {
            uint32_t sum = 0;
            for (size_t d = 0; d < BW_DIMS; d++) {
                int difference = (int)points[d * stride + (size_t)i] - query[d];
                sum += (uint32_t)(difference * difference);
            }
            wrong += sum != distances[i];
        }
        if (round == 3 || round == 9) { /* ALL_ZERO from 255; the largest distance there is */
            CHECK_EQUAL(distances[0], 32 * 255 * 255);
        }
        uint32_t some = distances[bw_random_below(&random, 64)];
        const uint32_t limits[] = {0,     1,     some,  some - (some > 0), some + 1,  some / 2,  32767, 32768,
                                   65534, 65535, 65536, 2080800,           INT32_MAX, UINT32_MAX};
        for (size_t j = 0; j < sizeof limits / sizeof *limits; j++) {
            uint32_t within[64];
            uint64_t mask = kernels->near(points, stride, query, order, limits[j], within);
            for (int i = 0; i < 64; i++) {
                bool in = mask >> i & 1;
                wrong += in != (distances[i] <= limits[j]) || (in && within[i] != distances[i]);
                found += in;
            }
        }
        bw_free(all);
    }
    CHECK_EQUAL(wrong, 0);
    CHECK(found > 100000);
}

static void test_zone_distances(const bw_kernels *kernels) {
    bw_random random = {4};
    unsigned wrong = 0;
    for (int round = 0; round < 600; round++) {
        int kind = round % KINDS;
        size_t groups = 1 + bw_random_below(&random, 3), stride = groups * 64;
        uint8_t *low = bw_alloc_aligned(stride * BW_DIMS), *high = bw_alloc_aligned(stride * BW_DIMS);
        uint8_t query[BW_DIMS];
        for (size_t i = 0; i < stride * BW_DIMS; i++) {
            uint8_t a = value_of(&random, kind), b = value_of(&random, kind);
            low[i] = a < b ? a : b;
            high[i] = a < b ? b : a;
        }
        for (int d = 0; d < BW_DIMS; d++) {
            query[d] = value_of(&random, round % 2 ? UNIFORM : (int)bw_random_below(&random, KINDS));
        }
        size_t b = bw_random_below(&random, groups) * 64;
        uint32_t bounds[64];
        kernels->zone_distances(low, high, stride, b, query, bounds);
        for (int k = 0; k < 64; k++) {
            uint32_t sum = 0;
            for (size_t d = 0; d < BW_DIMS; d++) {
                int l = low[d * stride + b + (size_t)k], h = high[d * stride + b + (size_t)k], x = query[d];
                int outside = x < l ? l - x : x > h ? x - h : 0;
                sum += (uint32_t)(outside * outside);
            }
            wrong += sum != bounds[k];
        }
        bw_free(low);
        bw_free(high);
    }
    CHECK_EQUAL(wrong, 0);
}

/* Coefficients such that 16 bits hold the slope at every value, often up to the last. */
static void random_coefficients(bw_random *random, int16_t *centre, int16_t *linear, int16_t *square) {
    int64_t steep = (int64_t)bw_random_below(random, bw_random_below(random, 2) ? 4 : 259) - 129;
    int64_t middle = (int64_t)bw_random_below(random, 256), first = -steep * middle,
            last = steep * (255 - middle);
    int64_t low = first < last ? first : last, high = first < last ? last : first;
    int64_t room = 2 * INT16_MAX - (high - low);
    int64_t shift = bw_random_below(random, 4) ? (int64_t)bw_random_below(random, (uint64_t)room + 1)
                                               : (int64_t)bw_random_below(random, 2) * room;
    int64_t slope = -INT16_MAX - low + shift;
    slope = slope > INT16_MAX ? INT16_MAX : slope < -INT16_MAX ? -INT16_MAX : slope;
    *centre = (int16_t)middle;
    *linear = (int16_t)slope;
    *square = (int16_t)steep;
}

static int32_t quadratic_at(const bw_quadratic *q, uint32_t i, int32_t x) {
    int32_t y = x - q->centre[i];
    return (q->linear[i] + q->square[i] * y) * y;
}

static bw_quadratic random_quadratic(bw_random *random) {
    bw_quadratic q = {.groups = 1 + (uint32_t)bw_random_below(random, BW_GROUPS)};
    for (uint32_t i = 0; i < BW_DIMS; i++) {
        uint32_t other = (uint32_t)bw_random_below(random, i + 1);
        q.dim[i] = q.dim[other];
        q.dim[other] = (uint8_t)i;
        if (i < 8 * q.groups && bw_random_below(random, 8)) {
            random_coefficients(random, &q.centre[i], &q.linear[i], &q.square[i]);
        }
        for (int x = 0; x < 256; x++) {
            q.best[i] = quadratic_at(&q, i, x) > quadratic_at(&q, i, q.best[i]) ? (uint8_t)x : q.best[i];
        }
    }
    return q;
}

static void test_quadratic(const bw_kernels *kernels) {
    bw_random random = {5};
    unsigned wrong = 0, given_up = 0, reached = 0;
    for (int round = 0; round < 1000; round++) {
        size_t stride = 64 + bw_random_below(&random, 2) * 256;
        uint8_t *points = bw_alloc_aligned(stride * BW_DIMS);
        for (size_t i = 0; i < stride * BW_DIMS; i++) {
            points[i] = value_of(&random, round % KINDS);
        }
        bw_quadratic q = random_quadratic(&random);
        int32_t sums[64], least[BW_GROUPS], whole[BW_GROUPS][64] = {0};
        for (uint32_t g = 0; g < q.groups; g++) {
            for (int k = 0; k < 64; k++) {
                whole[g][k] = g > 0 ? whole[g - 1][k] : 0;
                for (uint32_t i = 8 * g; i < 8 * g + 8; i++) {
                    whole[g][k] += quadratic_at(&q, i, points[q.dim[i] * stride + (size_t)k]);
                }
            }
            const int32_t choices[] = {whole[g][bw_random_below(&random, 64)], INT32_MIN, INT32_MIN, 1 << 29};
            least[g] = choices[bw_random_below(&random, g + 1 < q.groups ? 4 : 3)];
        }
        uint64_t found = kernels->quadratic(points, stride, &q, least, sums);
        for (int k = 0; k < 64; k++) {
            bool up = false, in = found >> k & 1;
            for (uint32_t g = 0; g + 1 < q.groups; g++) {
                up = up || whole[g][k] < least[g];
            }
            bool above = whole[q.groups - 1][k] >= least[q.groups - 1];
            wrong += (!above && in) || (above && !up && !in) || (in && sums[k] != whole[q.groups - 1][k]);
            given_up += up && !in && above;
            reached += in;
        }
        bw_free(points);
    }
    CHECK_EQUAL(wrong, 0);
    CHECK(given_up > 0 && reached > 1000);
}

static void test_quadratic_zones(const bw_kernels *kernels) {
    bw_random random = {7};
    unsigned wrong = 0;
    for (int round = 0; round < 100; round++) {
        size_t groups = 1 + bw_random_below(&random, 3), stride = groups * 64;
        uint8_t *low = bw_alloc_aligned(stride * BW_DIMS), *high = bw_alloc_aligned(stride * BW_DIMS);
        for (size_t i = 0; i < stride * BW_DIMS; i++) {
            uint8_t a = value_of(&random, round % KINDS), b = value_of(&random, round % KINDS);
            low[i] = a < b ? a : b;
            high[i] = a < b ? b : a;
        }
        bw_quadratic q = random_quadratic(&random);
        size_t b = bw_random_below(&random, groups) * 64;
        int32_t most[BW_GROUPS * 64];
        kernels->quadratic_zones(low, high, stride, b, &q, most);
        for (size_t k = 0; k < 64; k++) {
            int32_t sum = 0;
            for (uint32_t i = BW_DIMS; i-- > 0;) {
                int32_t best = INT32_MIN;
                size_t at = q.dim[i] * stride + b + k;
                for (int32_t x = low[at]; x <= high[at]; x++) {
                    best = quadratic_at(&q, i, x) > best ? quadratic_at(&q, i, x) : best;
                }
                sum += best;
                wrong += i % 8 == 0 && most[64 * (i / 8) + k] != sum;
            }
        }
        bw_free(low);
        bw_free(high);
    }
    CHECK_EQUAL(wrong, 0);
}

static void test_fine(const bw_kernels *kernels) {
    bw_random random = {8};
    unsigned wrong = 0;
    for (int round = 0; round < 1000; round++) {
        uint8_t code[BW_FINE_DIMS];
        bw_fine_quadratic q;
        int32_t sum = 0;
        for (int d = 0; d < BW_FINE_DIMS; d++) {
            code[d] = value_of(&random, round % KINDS);
            random_coefficients(&random, &q.centre[d], &q.linear[d], &q.square[d]);
            int32_t y = code[d] - q.centre[d];
            sum += (q.linear[d] + q.square[d] * y) * y;
        }
        wrong += kernels->fine(code, &q) != sum;
    }
    CHECK_EQUAL(wrong, 0);
}

static void test_crc32c(const bw_kernels *kernels) {
    CHECK_EQUAL(kernels->crc32c(0, "123456789", 9), 0xE3069283);
    CHECK_EQUAL(kernels->crc32c(0, "", 0), 0);
    bw_random random = {6};
    size_t most = 80000; /* three stretches of the fastest form, and a rest */
    uint8_t *data = test_alloc(most);
    for (size_t i = 0; i < most; i++) {
        data[i] = (uint8_t)bw_random_next(&random);
    }
    unsigned wrong = 0;
    for (int round = 0; round < 300; round++) {
        size_t first = bw_random_below(&random, 20);
        size_t bytes = bw_random_below(&random, round % 10 ? 300 : most - first);
        if (round < 8) { /* around the multiples of 3 * 8192 */
            bytes = (size_t)(1 + round / 3) * 3 * 8192 - 1 + (size_t)(round % 3);
        }
        size_t part = bw_random_below(&random, bytes + 1);
        uint32_t whole = kernels->crc32c(0, data + first, bytes);
        wrong += whole != bw_crc32c(0, data + first, bytes);
        wrong += whole !=
                 kernels->crc32c(kernels->crc32c(0, data + first, part), data + first + part, bytes - part);
    }
    free(data);
    CHECK_EQUAL(wrong, 0);
}

static void test_selection(void) {
    bw_error error;
    CHECK_STATUS(bw_isa_select("mmx", &error), BW_INVALID);
    CHECK_MESSAGE("mmx");
    CHECK_STATUS(bw_isa_select("generic", &error), BW_OK);
    CHECK(strcmp(bw_isa(), "generic") == 0);
    CHECK_STATUS(bw_isa_select("", &error), BW_OK);
    const char *best = bw_isa();
    CHECK_STATUS(bw_isa_select("generic", &error), BW_OK);
    CHECK_STATUS(bw_isa_select(NULL, &error), BW_OK);
    CHECK(strcmp(bw_isa(), best) == 0);
    CHECK(bw_isa_select("avx2", NULL) == (bw_cpu_has_avx2() && bw_kernels_avx2() ? BW_OK : BW_INVALID));
    CHECK(bw_isa_select("avx512", NULL) == (bw_cpu_has_avx512() && bw_kernels_avx512() ? BW_OK : BW_INVALID));
    CHECK(bw_isa_select("neon", NULL) == (bw_cpu_has_neon() && bw_kernels_neon() ? BW_OK : BW_INVALID));
}

int main(void) {
    static const char *const names[] = {"generic", "avx2", "avx512", "neon"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (bw_isa_select(names[i], NULL) != BW_OK) {
            continue;
        }
        const bw_kernels *kernels = bw_kernels_get();
        printf("%s\n", kernels->name);
        CHECK(strcmp(kernels->name, names[i]) == 0);
        test_box(kernels);
        test_planes(kernels);
        test_gather(kernels);
        test_zones(kernels);
        test_zone_padding(kernels);
        test_distances(kernels);
        test_zone_distances(kernels);
        test_quadratic(kernels);
        test_quadratic_zones(kernels);
        test_fine(kernels);
        test_crc32c(kernels);
    }
    test_selection();
    return test_finish();
}
