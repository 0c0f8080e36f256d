-- The names that people use: collections instead of index folders. Temporary, so that they work in a database that is
-- open read-only and leave nothing behind. They need the extension, and these from whoever loads them:
--   the variable boxwood_index, MAP(VARCHAR, VARCHAR): collection -> index folder
--   the variable boxwood_problem, of the same type: collection -> why its index cannot be used; the others are not in it
--   clip_text(collection, text, weights, template) -> UTINYINT[] and clip_image(collection, image), and the same with
--   _fine for fine codes, which are NULL in collections without: encoder.sql has them in Python, shell.sql in the shell

-- One string or a list of them, as a list.
CREATE OR REPLACE TEMP MACRO boxwood_strings(value) AS
    CASE WHEN typeof(value) LIKE '%]' THEN try_cast(value AS VARCHAR[]) WHEN value IS NOT NULL THEN [value::VARCHAR] END;

-- The index folder of a collection. An index that is not that of its rows is an error: it would give other rows.
CREATE OR REPLACE TEMP MACRO boxwood_path(collection) AS
    coalesce(
        CASE WHEN (getvariable('boxwood_problem')::MAP(VARCHAR, VARCHAR))[collection::VARCHAR] IS NOT NULL
             THEN error((getvariable('boxwood_problem')::MAP(VARCHAR, VARCHAR))[collection::VARCHAR]
                        || '. Run: boxwood repair, or open the collection in Python')
        END,
        getvariable('boxwood_index')[collection::VARCHAR],
        error('there is no collection ' || coalesce('''' || collection::VARCHAR || '''', 'NULL') || '; there are: '
              || coalesce(nullif(array_to_string(list_sort(map_keys(getvariable('boxwood_index'))), ', '), ''), 'none'))
    );

-- The k images nearest to a phrase, or to a mixture of several as clip_text takes it; to an image file; to a code; and to
-- an image of the collection (itself first): id, distance. `recall` below 1 is faster and finds that share of them on
-- average; `within` is a model that the images must match.
CREATE OR REPLACE TEMP MACRO search_text(
    collection, text, k := 60, recall := 1.0, within := NULL, weights := NULL, template := NULL
) AS TABLE
    SELECT * FROM boxwood_knn(
        boxwood_path(collection), q := clip_text(collection, text, weights := weights, template := template),
        k := k, recall := recall, within := within);

CREATE OR REPLACE TEMP MACRO search_image(collection, image, k := 60, recall := 1.0, within := NULL) AS TABLE
    SELECT * FROM boxwood_knn(
        boxwood_path(collection), q := clip_image(collection, image), k := k, recall := recall, within := within);

CREATE OR REPLACE TEMP MACRO search_code(collection, q, k := 60, recall := 1.0, within := NULL) AS TABLE
    SELECT * FROM boxwood_knn(boxwood_path(collection), q := q, k := k, recall := recall, within := within);

CREATE OR REPLACE TEMP MACRO search_like(collection, id, k := 60, recall := 1.0, within := NULL) AS TABLE
    SELECT * FROM boxwood_knn(boxwood_path(collection), like := id, k := k, recall := recall, within := within);

-- Everything that is like the positives, or like what words or a code say, and unlike the negatives: id, votes, score,
-- learner.
CREATE OR REPLACE TEMP MACRO refine(
    collection, positives := NULL, negatives := [], text := NULL, query := NULL, query_fine := NULL, learner := 'cover',
    estimators := 25, boxes := 0, random_negatives := NULL, negative_weight := 1.0, seed := 0, prior := true,
    rerank := false, guard := true
) AS TABLE
    SELECT * FROM boxwood_refine(
        boxwood_path(collection), positives := positives, negatives := negatives,
        query := CASE WHEN text IS NULL THEN query
                      WHEN query IS NULL THEN clip_text(collection, text)
                      ELSE error('text and query are both what is sought: give one of them')
                 END,
        query_fine := CASE WHEN text IS NULL OR NOT rerank THEN query_fine ELSE clip_text_fine(collection, text) END,
        learner := learner, estimators := estimators, boxes := boxes, random_negatives := random_negatives,
        negative_weight := negative_weight, seed := seed, prior := prior, rerank := rerank, guard := guard);

-- The model that refine would use, to be kept: model, learner, how it was trained, and what to expect of it.
CREATE OR REPLACE TEMP MACRO train_model(
    collection, positives := NULL, negatives := [], text := NULL, query := NULL, query_fine := NULL, learner := 'cover',
    estimators := 25, boxes := 0, random_negatives := NULL, negative_weight := 1.0, seed := 0, prior := true,
    rerank := false, guard := true
) AS TABLE
    SELECT * FROM boxwood_train(
        boxwood_path(collection), positives := positives, negatives := negatives,
        query := CASE WHEN text IS NULL THEN query
                      WHEN query IS NULL THEN clip_text(collection, text)
                      ELSE error('text and query are both what is sought: give one of them')
                 END,
        query_fine := CASE WHEN text IS NULL OR NOT rerank THEN query_fine ELSE clip_text_fine(collection, text) END,
        learner := learner, estimators := estimators, boxes := boxes, random_negatives := random_negatives,
        negative_weight := negative_weight, seed := seed, prior := prior, rerank := rerank, guard := guard);

-- A model's rows, their number, and how the index finds them box by box.
CREATE OR REPLACE TEMP MACRO search_model(collection, model) AS TABLE
    SELECT * FROM boxwood_search(boxwood_path(collection), model := model);

CREATE OR REPLACE TEMP MACRO count_model(collection, model) AS TABLE
    SELECT * FROM boxwood_count(boxwood_path(collection), model := model);

CREATE OR REPLACE TEMP MACRO explain_model(collection, model) AS TABLE
    SELECT * FROM boxwood_explain(boxwood_path(collection), model := model);

-- The segments of a collection's index.
CREATE OR REPLACE TEMP MACRO collection_info(collection) AS TABLE
    SELECT * FROM boxwood_info(boxwood_path(collection));
