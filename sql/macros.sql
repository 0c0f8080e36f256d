-- The names that people use: collections instead of index folders, and the rows that the transaction sees instead of
-- those that an index has. Temporary, so that they work in a database that is open read-only and leave nothing behind.
-- They need the extension, and these from whoever loads them:
--   the variable boxwood_index, MAP(VARCHAR, VARCHAR): collection -> index folder
--   the variable boxwood_rows, of the same type: collection -> SQL that boxwood_rows_sql makes
--   the variable boxwood_names, VARCHAR: the collections, for people
--   the variable boxwood_database, VARCHAR: the database that they are in
--   clip_text(collection, text, weights, template) -> UTINYINT[] and clip_image(collection, image), and the same with
--   _fine for fine codes, which are NULL in collections without: encoder.sql has them in Python, shell.sql in the shell

-- One string or a list of them, as a list.
CREATE OR REPLACE TEMP MACRO boxwood_strings(value) AS
    CASE WHEN typeof(value) LIKE '%]' THEN try_cast(value AS VARCHAR[]) WHEN value IS NOT NULL THEN [value::VARCHAR] END;

-- What a map has for a collection.
CREATE OR REPLACE TEMP MACRO boxwood_of(map, collection) AS
    coalesce(
        map[collection::VARCHAR],
        error('there is no collection ' || coalesce('''' || collection::VARCHAR || '''', 'NULL') || '; there are: '
              || getvariable('boxwood_names')));

-- The index folder of a collection.
CREATE OR REPLACE TEMP MACRO boxwood_path(collection) AS boxwood_of(getvariable('boxwood_index'), collection);

-- A string, and a name of several parts, as SQL.
CREATE OR REPLACE TEMP MACRO boxwood_literal(value) AS '''' || replace(value, '''', '''' || '''') || '''';
CREATE OR REPLACE TEMP MACRO boxwood_quoted(parts) AS
    array_to_string(list_transform(parts, lambda part: '"' || replace(part, '"', '""') || '"'), '.');

-- The parts of a table's full name.
CREATE OR REPLACE TEMP MACRO boxwood_parts(db, name) AS
    CASE WHEN name IS NULL THEN NULL
         ELSE [db, 'main'][:greatest(3 - len(string_split(name, '.')), 0)] || string_split(name, '.')
    END;

-- A query for one row, `r`: what the transaction sees of a collection that its index may not have, as the functions
-- boxwood_live_.. take it. Changed rows are those that were written or deleted since the generation in boxwood.indexes; or
-- all rows, where the index has gone further than the transaction (boxwood_since). They are in the codes table, or of
-- small appends in boxwood.appended.
-- Macros cannot have tables as arguments, so they take this by query(). `metadata` is the table of whose ids alone rows
-- count, or NULL. What stands in the query may have changed since it was made: then it is an error.
CREATE OR REPLACE TEMP MACRO boxwood_rows_sql(db, name, uuid, path, metadata, id_column, has_fine) AS
    'WITH boxwood_state AS MATERIALIZED (SELECT c.generation AS latest, boxwood_since(' || boxwood_literal(path)
    || ', c.generation, i.generation, i.checksum) AS since FROM ' || boxwood_quoted([db, 'boxwood']) || '.collections c, '
    || boxwood_quoted([db, 'boxwood']) || '.indexes i WHERE c.name = ' || boxwood_literal(name) || ' AND i.collection = '
    || boxwood_literal(name) || ') SELECT {''index'': ' || boxwood_literal(path)
    || ', ''uuid'': (SELECT CASE WHEN coalesce(bool_and(uuid = ' || boxwood_literal(uuid)
    || ' AND table_name IS NOT DISTINCT FROM ' || coalesce(boxwood_literal(metadata), 'NULL')
    || ' AND (fine_fingerprint <> '''') = ' || has_fine::VARCHAR
    || '), false) THEN max(uuid) ELSE error(' || boxwood_literal(
        'the collection ' || name || ' was changed or dropped since this connection was told of it: call boxwood.load(con) '
        || 'again, or in the shell .read shell.sql')
    || ') END FROM ' || boxwood_quoted([db, 'boxwood']) || '.collections WHERE name = ' || boxwood_literal(name)
    || '), ''quantizer'': (SELECT max(quantizer_fingerprint) FROM ' || boxwood_quoted([db, 'boxwood'])
    || '.collections WHERE name = ' || boxwood_literal(name)
    || '), ''generation'': (SELECT max(since) FROM boxwood_state), ''latest'': (SELECT max(latest) FROM boxwood_state)'
    || ', ''ids'': flatten(list(ids)), ''codes'': flatten(list(codes)), ''fine'': '
    || CASE WHEN has_fine THEN 'flatten(list(fine))' ELSE 'NULL::UTINYINT[]' END
    || ', ''deleted'': (SELECT list(id) FROM ' || boxwood_quoted([db, 'boxwood'])
    || '.deleted WHERE collection = ' || boxwood_literal(name)
    || '), ''live'': '
    || coalesce(
        '(SELECT boxwood_ids(TRY_CAST(' || boxwood_quoted([id_column]) || ' AS BIGINT)) FROM '
        || boxwood_quoted(boxwood_parts(db, metadata)) || ')',
        'NULL::BLOB')
    || '} AS r FROM (SELECT [id] AS ids, ['
    || array_to_string(list_transform(range(32), lambda d: 'd' || lpad(d::VARCHAR, 2, '0')), ', ')
    || '] AS codes, ' || CASE WHEN has_fine THEN 'fine::UTINYINT[]' ELSE 'NULL::UTINYINT[]' END || ' AS fine FROM '
    || boxwood_quoted([db, 'boxwood', name || '_codes'])
    || ' WHERE generation > (SELECT max(since) FROM boxwood_state) UNION ALL '
    || 'SELECT boxwood_int64s(ids), boxwood_bytes(codes), boxwood_bytes(fine) FROM ' || boxwood_quoted([db, 'boxwood'])
    || '.appended WHERE collection = ' || boxwood_literal(name)
    || ' AND generation > (SELECT max(since) FROM boxwood_state))';

-- Ids to search among, as boxwood_live_knn takes them: NULL where nothing was said, and empty where a query found none.
CREATE OR REPLACE TEMP MACRO boxwood_among(ids) AS
    CASE WHEN typeof(ids) <> '"NULL"' THEN coalesce(ids::BIGINT[], []::BIGINT[]) END;

-- The k images nearest to a phrase, or to a mixture of several as clip_text takes it; to an image file; to a code; and to
-- an image of the collection (itself first): id, distance. `recall` below 1 is faster and finds that share of them on
-- average; `within` is a model that the images must match; `ids` a list that they must be on, as in
-- ids := (SELECT list(id) FROM photos WHERE camera = 'x'). With either of these the answer is exact.
CREATE OR REPLACE TEMP MACRO search_text(
    collection, text, k := 60, recall := 1.0, within := NULL, weights := NULL, template := NULL, ids := NULL
) AS TABLE
    SELECT unnest(
        boxwood_live_knn(
            r, clip_text(collection, text, weights := weights, template := template)::UTINYINT[],
            k::BIGINT, recall::DOUBLE, within::VARCHAR, boxwood_among(ids)),
        max_depth := 2)
    FROM query(boxwood_of(getvariable('boxwood_rows'), collection));

CREATE OR REPLACE TEMP MACRO search_image(collection, image, k := 60, recall := 1.0, within := NULL, ids := NULL) AS TABLE
    SELECT unnest(
        boxwood_live_knn(
            r, clip_image(collection, image)::UTINYINT[], k::BIGINT, recall::DOUBLE, within::VARCHAR, boxwood_among(ids)),
        max_depth := 2)
    FROM query(boxwood_of(getvariable('boxwood_rows'), collection));

CREATE OR REPLACE TEMP MACRO search_code(collection, q, k := 60, recall := 1.0, within := NULL, ids := NULL) AS TABLE
    SELECT unnest(
        boxwood_live_knn(r, q::UTINYINT[], k::BIGINT, recall::DOUBLE, within::VARCHAR, boxwood_among(ids)), max_depth := 2)
    FROM query(boxwood_of(getvariable('boxwood_rows'), collection));

CREATE OR REPLACE TEMP MACRO search_like(collection, id, k := 60, recall := 1.0, within := NULL, ids := NULL) AS TABLE
    SELECT unnest(
        boxwood_live_knn(
            r, boxwood_live_code(r, id::BIGINT), k::BIGINT, recall::DOUBLE, within::VARCHAR, boxwood_among(ids)),
        max_depth := 2)
    FROM query(boxwood_of(getvariable('boxwood_rows'), collection));

-- The training of the two macros below, on rows `r` as boxwood_rows_sql gives them.
CREATE OR REPLACE TEMP MACRO boxwood_train_rows(
    r, collection, positives, negatives, text, query, query_fine, learner, estimators, boxes, random_negatives,
    negative_weight, seed, prior, rerank, guard
) AS
    boxwood_live_train(
        r, positives::BIGINT[], negatives::BIGINT[],
        CASE WHEN text IS NULL THEN query
             WHEN query IS NULL THEN clip_text(collection, text)
             ELSE error('text and query are both what is sought: give one of them')
        END::UTINYINT[],
        CASE WHEN text IS NULL OR NOT rerank THEN query_fine ELSE clip_text_fine(collection, text) END::UTINYINT[],
        learner::VARCHAR, estimators::BIGINT, boxes::BIGINT, random_negatives::BIGINT, negative_weight::DOUBLE,
        seed::UBIGINT, prior::BOOLEAN, rerank::BOOLEAN, guard::BOOLEAN);

-- Everything that is like the positives, or like what words or a code say, and unlike the negatives: id, votes, score,
-- learner.
CREATE OR REPLACE TEMP MACRO refine(
    collection, positives := NULL, negatives := [], text := NULL, query := NULL, query_fine := NULL, learner := 'cover',
    estimators := 25, boxes := 0, random_negatives := NULL, negative_weight := 1.0, seed := 0, prior := true,
    rerank := false, guard := true
) AS TABLE
    WITH boxwood_trained AS MATERIALIZED (
        SELECT r, boxwood_train_rows(
            r, collection, positives, negatives, text, query, query_fine, learner, estimators, boxes, random_negatives,
            negative_weight, seed, prior, rerank, guard) AS t
        FROM query(boxwood_of(getvariable('boxwood_rows'), collection)))
    SELECT unnest(boxwood_live_search(r, t.model, current_setting('threads')::BIGINT), max_depth := 2), t.learner
    FROM boxwood_trained;

-- The model that refine would use, to be kept: model, learner, how it was trained, and what to expect of it.
CREATE OR REPLACE TEMP MACRO train_model(
    collection, positives := NULL, negatives := [], text := NULL, query := NULL, query_fine := NULL, learner := 'cover',
    estimators := 25, boxes := 0, random_negatives := NULL, negative_weight := 1.0, seed := 0, prior := true,
    rerank := false, guard := true
) AS TABLE
    WITH boxwood_trained AS MATERIALIZED (
        SELECT boxwood_train_rows(
            r, collection, positives, negatives, text, query, query_fine, learner, estimators, boxes, random_negatives,
            negative_weight, seed, prior, rerank, guard) AS t
        FROM query(boxwood_of(getvariable('boxwood_rows'), collection)))
    SELECT unnest(t) FROM boxwood_trained;

-- A value of the index, where its generation is one that what changed is known for.
CREATE OR REPLACE TEMP MACRO boxwood_stamped(value, generation, oldest, latest) AS
    CASE WHEN generation BETWEEN oldest AND latest THEN value
         ELSE error('the index was brought up to date while this statement ran: run it again') END;

-- A model's rows. Those of the index come as they are found, so that they need no memory however many they are. The scan
-- opens the index for itself, and tells its generation. Every column depends on it: or DuckDB would test what a query asks
-- of them in the scan, and leave out the row by which the generation is told where nothing is found.
CREATE OR REPLACE TEMP MACRO search_model(collection, model) AS TABLE
    WITH boxwood_seen AS MATERIALIZED (FROM query(boxwood_of(getvariable('boxwood_rows'), collection)))
    SELECT id, votes, score FROM (
        SELECT boxwood_stamped(id, generation, oldest, latest) AS id,
               boxwood_stamped(votes, generation, oldest, latest) AS votes,
               boxwood_stamped(score, generation, oldest, latest) AS score,
               boxwood_stamped(boxwood_live_has(changed, id), generation, oldest, latest) AS has
        FROM boxwood_live_scan(boxwood_path(collection), model := model),
             (SELECT boxwood_live_changed(r) AS changed, r.generation AS oldest, r.latest AS latest
              FROM boxwood_seen WHERE r.generation >= 0))
    WHERE has
    UNION ALL
    SELECT unnest(boxwood_live_fresh(r, model::VARCHAR), max_depth := 2) FROM boxwood_seen;

-- Their number: count.
CREATE OR REPLACE TEMP MACRO count_model(collection, model) AS TABLE
    SELECT boxwood_live_count(r, model::VARCHAR, current_setting('threads')::BIGINT) AS count
    FROM query(boxwood_of(getvariable('boxwood_rows'), collection));

-- The index by itself, as it is on disk, whatever changed since: how it finds a model's rows box by box, and its segments.
CREATE OR REPLACE TEMP MACRO explain_model(collection, model) AS TABLE
    SELECT * FROM boxwood_explain(boxwood_path(collection), model := model);

CREATE OR REPLACE TEMP MACRO collection_info(collection) AS TABLE
    SELECT * FROM boxwood_info(boxwood_path(collection));

-- A query for the concepts of a collection, all versions: models with a name. The newest version of a name rules.
CREATE OR REPLACE TEMP MACRO boxwood_concepts_sql(collection) AS
    'FROM ' || boxwood_quoted([getvariable('boxwood_database'), 'boxwood']) || '.concepts WHERE collection = '
    || boxwood_literal(coalesce(collection::VARCHAR, ''));

-- The rows of a concept: id, votes, score. The views of the schema `concepts` ask for them by this name, which tells whoever
-- opens the database without Boxwood what is missing; people write concept(..).
CREATE OR REPLACE TEMP MACRO boxwood_concept(collection, name) AS TABLE
    WITH boxwood_seen AS MATERIALIZED (FROM query(boxwood_of(getvariable('boxwood_rows'), collection))),
    boxwood_kept AS MATERIALIZED (
        SELECT max_by(k.model, k.version) FILTER (k.name = name::VARCHAR) AS model,
               max_by(k.quantizer, k.version) FILTER (k.name = name::VARCHAR) AS quantizer,
               coalesce(string_agg(DISTINCT k.name, ', ' ORDER BY k.name), 'none') AS others
        FROM query(boxwood_concepts_sql(collection)) k)
    SELECT unnest(
        boxwood_live_search(
            r,
            CASE WHEN model IS NULL THEN error(
                    'the collection ' || collection::VARCHAR || ' has no concept '
                    || coalesce('''' || name::VARCHAR || '''', 'NULL') || '; it has: ' || others)
                 WHEN quantizer <> r.quantizer THEN error(
                    'the concept ' || name::VARCHAR || ' is of codes that ' || collection::VARCHAR
                    || ' had before it was re-coded: train it again from its labels, which boxwood.concepts keeps')
                 ELSE model
            END,
            current_setting('threads')::BIGINT),
        max_depth := 2)
    FROM boxwood_seen, boxwood_kept;

CREATE OR REPLACE TEMP MACRO concept(collection, name) AS TABLE FROM boxwood_concept(collection, name);

-- The concepts of a collection, one row each: name, version, learner, numbers of labels, note, created, and whether they are
-- of its codes.
CREATE OR REPLACE TEMP MACRO concept_list(collection) AS TABLE
    SELECT k.name, k.version, k.learner, len(k.positives)::BIGINT AS positives, len(k.negatives)::BIGINT AS negatives,
           k.note, k.created, k.quantizer = r.quantizer AS current
    FROM query(boxwood_concepts_sql(collection)) k, query(boxwood_of(getvariable('boxwood_rows'), collection))
    QUALIFY row_number() OVER (PARTITION BY k.name ORDER BY k.version DESC) = 1
    ORDER BY k.name;

-- A concept to be kept, or the next version of one: what train_model trains, as a row of boxwood.concepts. Macros cannot
-- write:
--   INSERT INTO boxwood.concepts BY NAME FROM new_concept('photos', 'leopard', positives := [17, 42], negatives := [5]);
CREATE OR REPLACE TEMP MACRO new_concept(
    collection, name, positives := NULL, negatives := [], note := '', text := NULL, query := NULL, query_fine := NULL,
    learner := 'cover', estimators := 25, boxes := 0, random_negatives := NULL, negative_weight := 1.0, seed := 0,
    prior := true, rerank := false, guard := true
) AS TABLE
    WITH boxwood_trained AS MATERIALIZED (
        SELECT r, boxwood_train_rows(
            r, collection, positives, negatives, text, query, query_fine, learner, estimators, boxes, random_negatives,
            negative_weight, seed, prior, rerank, guard) AS t
        FROM query(boxwood_of(getvariable('boxwood_rows'), collection)))
    SELECT collection::VARCHAR AS collection, name::VARCHAR AS name,
           (SELECT coalesce(max(k.version), 0) + 1 FROM query(boxwood_concepts_sql(collection)) k
             WHERE k.name = name::VARCHAR) AS version,
           t.model AS model, t.learner AS learner, r.quantizer AS quantizer,
           coalesce(positives::BIGINT[], []) AS positives, coalesce(negatives::BIGINT[], []) AS negatives,
           coalesce(note::VARCHAR, '') AS note
    FROM boxwood_trained;
